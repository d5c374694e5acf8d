"""The pure functions as an execution: one layer at a time, with the signatures of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..ftp import FTPState, ftp, master, radius_gradient
from ..hparams import as_tensor
from ..kernels import sharded
from ..kernels.layers import SGD, AdamW, Amp, Ball, Layers
from ..optimizers.adam import AdamState, adam, adamw
from ..optimizers.combinators import anneal
from ..optimizers.sgd import SGDState, sgd
from ..projections import clip_radius, rescaled, row_norm
from ..tree import working
from ..types import Optimizer

__all__ = ["project_", "radii_", "step_"]


def step_(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp = Amp()) -> None:  # noqa: B008 (immutable)
    """A whole step, as ``kernels.foreach.step_``."""
    if amp.found_inf is not None and amp.found_inf.item():
        return
    with _whole(layers) as layers:
        _step(layers, base, ball, amp)


def _step(layers: Layers, base: AdamW | SGD, ball: Ball, amp: Amp) -> None:
    optimizer = _pure(base, amsgrad=len(layers.moments) > 2)
    for i, stored in enumerate(layers.weights):
        params = {"w": stored}
        grads = {"w": _gradient(layers.grads[i], stored, amp)}
        count = layers.steps[i].to(torch.int64)  # steps done before this one
        layers.steps[i].add_(1)
        moments = [column[i] for column in layers.moments]
        state = _state(base, moments, count, stored)
        if layers.radii[i].numel():
            c = layers.deviations[i]
            w0 = _anchor(layers, i)
            rule = ftp(optimizer, {"w": w0}, ball.norm, ball.kappa, ball.radius_lr, "exact" if ball.exact else "paper")
            count = layers.radius_steps[i].to(torch.int64)
            radius_opt = AdamState(count, {"w": layers.radius_exp_avgs[i]}, {"w": layers.radius_exp_avg_sqs[i]}, ())
            n, gamma = layers.norms[i], layers.radii[i]
            full = FTPState(state, {"w": gamma}, radius_opt, {"w": c.to(n.dtype)}, {"w": n})
            new, full = rule.update(grads, full, params)
            adam_state = full.radius_opt
            old = [layers.radius_exp_avgs[i], layers.radius_exp_avg_sqs[i], c, n, gamma]
            trees = (adam_state.exp_avg, adam_state.exp_avg_sq, full.deviation, full.norms, full.radius)
            _write(old, [x["w"] for x in trees])
            layers.radius_steps[i].add_(1)
            state = full.base
        else:
            new, state = optimizer.update(grads, state, params)
        values = _moments(state)
        _write([*moments[: len(values)], stored], [*values[: len(moments)], new["w"]])


def radii_(layers: Layers, ball: Ball, amp: Amp = Amp()) -> Tensor:  # noqa: B008 (immutable)
    """New radii before the clip, as ``kernels.foreach.radii_``."""
    with _whole(layers) as layers:
        return _radii(layers, ball, amp)


def _radii(layers: Layers, ball: Ball, amp: Amp) -> Tensor:
    rule = anneal(adam(lr=ball.radius_lr), ball.kappa)
    packed = []
    for i, gamma in enumerate(layers.radii):
        n, gradient = layers.norms[i], "exact" if ball.exact else "paper"
        c = layers.deviations[i].to(n.dtype)
        h = radius_gradient(_gradient(layers.grads[i], layers.weights[i], amp), c, n, gamma, gradient)
        m, v = layers.radius_exp_avgs[i], layers.radius_exp_avg_sqs[i]
        new, state = rule.update(h, AdamState(layers.radius_steps[i].to(torch.int64), m, v, ()), gamma)
        layers.radius_steps[i].add_(1)
        _write([m, v], [state.exp_avg, state.exp_avg_sq])
        packed.append(new.clamp(min=1e-8))
    return torch.stack(packed)


def project_(layers: Layers, packed: Tensor, ball: Ball) -> None:
    """Projection of moved weights, as ``kernels.foreach.project_``."""
    with _whole(layers) as layers:
        _project(layers, packed, ball)


def _project(layers: Layers, packed: Tensor, ball: Ball) -> None:
    for i, stored in enumerate(layers.weights):
        n, w0 = layers.norms[i], _anchor(layers, i)
        w0 = w0.to(n.dtype)
        c = master(stored, w0, layers.deviations[i].to(n.dtype), n, layers.radii[i]) - w0
        norms = row_norm(c, ball.norm)
        gamma = clip_radius(packed[i], norms)
        old = [stored, layers.deviations[i], n, layers.radii[i]]
        _write(old, [rescaled(w0, c, gamma, norms), c, norms, gamma])


def _write(old: list[Tensor], new: list[Tensor]) -> None:
    if torch.compiler.is_compiling():  # torch 2.13 loses copy_ to a 0-d tensor there
        torch._foreach_copy_(old, new)
        return
    for a, b in zip(old, new, strict=True):
        a.copy_(b)


@contextmanager
def _whole(layers: Layers) -> Iterator[Layers]:
    """The layers themselves; where some are DTensors, whole copies that are spread again in the end."""
    spread: list[tuple[Tensor, Tensor]] = []

    def gathered(x: Tensor) -> Tensor:
        if not sharded.is_spread(x):
            return x
        spread.append((x, x.full_tensor()))  # pyright: ignore[reportAttributeAccessIssue]
        return spread[-1][1]

    columns = [[gathered(x) for x in column] for column in layers[:-1]]
    yield Layers._make([*columns, [[gathered(x) for x in column] for column in layers.moments]])
    for x, whole in spread:
        x.copy_(sharded.place(whole, x))


def _pure(base: AdamW | SGD, amsgrad: bool) -> Optimizer:
    if isinstance(base, AdamW):
        return adamw(as_tensor(base.lr), (base.beta1, base.beta2), base.eps, base.weight_decay, amsgrad)
    return sgd(as_tensor(base.lr), base.momentum, base.dampening, base.weight_decay, nesterov=base.nesterov)


def _state(base: AdamW | SGD, moments: list[Tensor], count: Tensor, stored: Tensor) -> Any:
    if isinstance(base, AdamW):
        return AdamState(count, {"w": moments[0]}, {"w": moments[1]}, {"w": moments[2]} if len(moments) > 2 else ())
    if not moments:
        return SGDState(count, {"w": torch.zeros_like(working(stored))})
    # The pure rule takes a count of 0 for a fresh buffer.
    fresh = moments[1] == count if len(moments) > 1 else torch.zeros_like(count, dtype=torch.bool)
    return SGDState(torch.where(fresh, 0, 1).to(torch.int64), {"w": moments[0]})


def _moments(state: Any) -> list[Tensor]:
    if isinstance(state, SGDState):
        return [state.momentum_buffer["w"]]
    return [tree["w"] for tree in (state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq) if tree]


def _gradient(grad: Tensor, stored: Tensor, amp: Amp) -> Tensor:
    g = grad.to(working(stored).dtype)
    g = g if amp.grad_scale is None else g / amp.grad_scale.reshape(()).to(g)
    return -g if amp.maximize else g


def _anchor(layers: Layers, i: int) -> Tensor:
    w0 = layers.anchors[i]
    return w0 if w0.numel() else torch.zeros_like(layers.deviations[i])
