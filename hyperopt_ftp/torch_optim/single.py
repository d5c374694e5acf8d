"""The pure functions as an execution of any rule: one parameter at a time, written back in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..anchored.rule import Numbers, Rule, RuleState
from ..hparams import as_tensor
from ..kernels import sharded
from ..kernels.layers import SGD, AdamW, Amp
from ..optimizers.adam import AdamState, adamw
from ..optimizers.sgd import SGDState, sgd
from ..tree import working
from ..types import Optimizer
from .store import Columns

__all__ = ["Kept", "after_", "before", "step_"]


class Kept(NamedTuple):
    """What a parameter's step keeps from before the base's; nothing is written until it ends."""

    g: Tensor  # raw gradient
    w: Tensor  # weights, what stands behind 16 bits
    state: RuleState | None  # None: unconstrained


def step_(columns: Columns, base: AdamW | SGD, rule: Rule, numbers: Numbers, amp: Amp) -> None:
    """A whole step, the base's too."""
    if amp.found_inf is not None and amp.found_inf.item():
        return
    optimizer = _pure(base, amsgrad=len(columns.moments) > 2)
    with _whole(columns) as columns:
        for i, stored in enumerate(columns.weights):
            seen, kept = _before(columns, i, rule, numbers, amp)
            count = columns.steps[i].to(torch.int64)  # steps done before this one
            columns.steps[i].add_(1)
            moments = [column[i] for column in columns.moments]
            state = _state(base, moments, count, stored)
            moved, state = optimizer.update({"w": seen}, state, {"w": kept.w})
            values = _moments(state)
            _write(moments[: len(values)], values[: len(moments)])
            _after_(columns, i, rule, numbers, kept, moved["w"])


def before(columns: Columns, rule: Rule, numbers: Numbers, amp: Amp) -> tuple[list[Tensor], list[Kept]]:
    """Gradients for a base that is given, none where the rule leaves them as they are, and what is kept."""
    sign = -1 if amp.maximize else 1
    with _whole(columns, write=False) as whole:
        pairs = [_before(whole, i, rule, numbers, amp) for i in range(len(whole.weights))]
    grads = []
    if rule.before:
        rows = zip(columns.weights, columns.grads, pairs, strict=True)
        grads = [sharded.place((sign * seen).to(g.dtype), w) for w, g, (seen, _) in rows]
    # The base moves the weights in place.
    return grads, [kept._replace(w=kept.w.clone()) if rule.after else kept for _, kept in pairs]


def after_(columns: Columns, rule: Rule, numbers: Numbers, kept: list[Kept]) -> None:
    """New weights, once a base has moved them, and the state."""
    with _whole(columns) as columns:
        for i, stored in enumerate(columns.weights):
            # A base may leave 16-bit weights where they were: then what stands behind them is still the master copy.
            moved = (
                rule.master(stored, _anchor(columns, i), _held(columns, i, rule)) if rule.master else working(stored)
            )
            _after_(columns, i, rule, numbers, kept[i], moved)


def _before(columns: Columns, i: int, rule: Rule, numbers: Numbers, amp: Amp) -> tuple[Tensor, Kept]:
    stored = columns.weights[i]
    w, g = working(stored), _gradient(columns.grads[i], stored, amp)
    if not _is_held(columns, i):
        return g, Kept(g, w, None)
    w0, state = _anchor(columns, i), _held(columns, i, rule)
    w = rule.master(stored, w0, state) if rule.master else w
    seen, state = rule.before(g, w, w0, state, numbers) if rule.before else (g, state)
    return seen, Kept(g, w, state)


def _after_(columns: Columns, i: int, rule: Rule, numbers: Numbers, kept: Kept, moved: Tensor) -> None:
    if kept.state is None:
        _write([columns.weights[i]], [moved])
        return
    state, new = kept.state, moved
    if rule.after:
        new, state = rule.after(moved, kept.w, _anchor(columns, i), kept.g, state, numbers)
    if rule.after or moved is not columns.weights[i]:
        _write([columns.weights[i]], [new])
    columns_ = [column[i] for column in columns.state]
    if rule.specs:
        _write(columns_, [state[spec.name] for spec in rule.specs])
    else:
        columns_[-1].add_(1)  # a count alone says that the parameter has begun


def _is_held(columns: Columns, i: int) -> bool:
    return columns.state[-1][i].numel() > 0


def _held(columns: Columns, i: int, rule: Rule) -> RuleState:
    """A constrained parameter's state as the rule takes it: counts as integers, else working precision."""
    real = working(columns.weights[i]).dtype
    values = zip(rule.specs, columns.state, strict=False)
    return {s.name: column[i].to(torch.int64 if s.kind == "count" else real) for s, column in values}


def _anchor(columns: Columns, i: int) -> Tensor:
    w, w0 = working(columns.weights[i]), columns.anchors[i]
    return w0.to(w.dtype) if w0.numel() else torch.zeros_like(w)


def _gradient(grad: Tensor, stored: Tensor, amp: Amp) -> Tensor:
    g = grad.to(working(stored).dtype)
    g = g if amp.grad_scale is None else g / amp.grad_scale.reshape(()).to(g)
    return -g if amp.maximize else g


def _write(old: list[Tensor], new: list[Tensor]) -> None:
    if torch.compiler.is_compiling():  # torch 2.13 loses copy_ to a 0-d tensor there
        torch._foreach_copy_(old, new)
        return
    for a, b in zip(old, new, strict=True):
        a.copy_(b)


@contextmanager
def _whole(columns: Columns, write: bool = True) -> Iterator[Columns]:
    """The columns themselves; where some are DTensors, whole copies, of which what a step changes is cut in the end."""
    gathered: list[tuple[Tensor, Tensor]] = []

    def whole(x: Tensor, changes: bool) -> Tensor:
        if not sharded.is_dtensor(x):
            return x
        full = sharded.whole(x)
        if changes and write:
            gathered.append((x, full))
        return full

    weights, grads, steps, anchors, *many = columns
    first = [
        [whole(x, changes) for x in c]
        for c, changes in ((weights, True), (grads, False), (steps, True), (anchors, False))
    ]
    yield Columns._make([*first, *([[whole(x, True) for x in column] for column in group] for group in many)])
    for x, full in gathered:
        x.copy_(sharded.place(full, x))


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
