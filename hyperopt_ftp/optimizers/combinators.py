"""Combinators: an optimizer in, an optimizer out, one idea each; the base's ``start`` and ``settle`` shine through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..hparams import complete, domains_of, to_tensors
from ..types import Optimizer, check_optimizer
from .leafwise import check_grads, check_state, no_steps, safe_sqrt

__all__ = ["ScheduledState", "anneal", "check_zero_d", "clipped", "extended", "scheduled"]


def anneal(by: Optimizer, kappa: Any = 1.0) -> Optimizer:
    """Scale positive gradients by ``kappa`` before ``by`` sees them: ``h <- kappa * h where h > 0``.

    The positive gradient annealing of FTP (arXiv 2310.19182, section 3.3), for the optimizer of a radius: a positive
    hypergradient asks for a smaller radius. ``kappa`` is no strength knob when ``by`` is scale-free: under Adam, with
    positive h only, kappa = 1, 0.5 and 0.1 give the same radii; kappa = 0 means that a radius never shrinks by its
    gradient.

    Args:
        by: any optimizer.
        kappa: number or 0-d tensor in [0, 1]; added to the hparams as ``"kappa"``.

    Raises:
        ValueError: kappa outside [0, 1].

    >>> import torch, hyperopt_ftp as hft
    >>> by = hft.anneal(hft.sgd(lr=1.0), kappa=0.5)
    >>> r = torch.ones(2)
    >>> by.update(torch.tensor([1.0, -1.0]), by.init(r), r)[0]
    tensor([0.5000, 2.0000])
    """

    def before(grads: Any, own: dict[str, Any]) -> Any:
        return tree.map_tree(lambda h: torch.where(h > 0, own["kappa"].to(h.dtype) * h, h), grads)

    return _on_gradients(by, to_tensors(kappa=kappa), before)


def clipped(base: Optimizer, max_norm: Any) -> Optimizer:
    """Clip the global norm of the gradient: ``g <- g * min(1, max_norm / (||g|| + 1e-6))`` over all leaves.

    The rule of :func:`torch.nn.utils.clip_grad_norm_` with ``norm_type=2``.

    Args:
        base: any optimizer.
        max_norm: number or 0-d tensor >= 0; added to the hparams as ``"max_norm"``.

    Raises:
        ValueError: max_norm negative or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped(hft.sgd(lr=1.0), max_norm=1.0)
    >>> w = torch.zeros(2)
    >>> opt.update(torch.tensor([30.0, -40.0]), opt.init(w), w)[0]
    tensor([-0.6000,  0.8000])
    """

    def before(grads: Any, own: dict[str, Any]) -> Any:
        squares = [(tree.working(g) ** 2).sum() for g in tree.leaves(grads)]
        factor = (own["max_norm"] / (safe_sqrt(torch.stack(squares).sum()) + 1e-6)).clamp(max=1.0)
        return tree.map_tree(lambda g: (g * factor).to(g.dtype), grads)

    return _on_gradients(base, to_tensors(max_norm=max_norm), before)


class ScheduledState(NamedTuple):
    """State of :func:`scheduled`."""

    step: Tensor  # shape (), int64: updates done
    base: Any


def scheduled(base: Optimizer, **schedules: Callable[[Tensor], Tensor]) -> Optimizer:
    """Multiply hyperparameters by functions of the step.

    Args:
        base: any optimizer; its hparams stay the same and are the values before scaling.
        schedules: by hparam name, ``schedule(count) -> factor``, where ``count`` is a 0-d int64 tensor that counts the
            updates done so far (0 at the first). Use torch functions, no Python branch, so that it compiles.

    Raises:
        ValueError: a name that is not an hparam of ``base``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.scheduled(hft.sgd(lr=1.0), lr=lambda t: 0.5**t)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    >>> w
    tensor([1.7500])
    """
    unknown = sorted(schedules.keys() - base.hparams.keys())
    if unknown:
        raise ValueError(f"schedules for {unknown}, but the hparams are {sorted(base.hparams)}")

    def scaled(hparams: Any, count: Tensor) -> dict[str, Any]:
        h = dict(complete(hparams, base.hparams))
        for name, schedule in schedules.items():
            factor = schedule(count)
            h[name] = tree.map_tree(partial(torch.mul, factor), h[name])
        return h

    def init(params: Any, hparams: Any = None) -> ScheduledState:
        return ScheduledState(no_steps(), base.init(params, complete(hparams, base.hparams)))

    def update(grads: Any, state: ScheduledState, params: Any, hparams: Any = None) -> tuple[Any, ScheduledState]:
        check_state(ScheduledState, state)
        params, inner = base.update(grads, state.base, params, scaled(hparams, state.step))
        return params, ScheduledState(state.step + 1, inner)

    def settle(hparams: Any, new_state: ScheduledState) -> Any:
        return base.settle(hparams, new_state.base) if base.settle else hparams

    settles = settle if base.settle else None
    return Optimizer(init, update, base.hparams, base.start, settles, base.domains, base.tunes)


def extended(hparams: Any, base: Optimizer, own: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the hparams of a combinator into the base's and its own."""
    h = complete(hparams, {**base.hparams, **own})
    return {name: h[name] for name in base.hparams}, {name: h[name] for name in own}


def check_zero_d(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim:
        got = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a 0-d tensor, got {got}")


def check_new_names(base: Optimizer, own: dict[str, Any]) -> None:
    check_optimizer("base", base)
    both = sorted(own.keys() & base.hparams.keys())
    if both:
        raise ValueError(f"the optimizer already has the hparams {both}; wrap it only once")


def _on_gradients(base: Optimizer, own: dict[str, Any], before: Callable[[Any, dict[str, Any]], Any]) -> Optimizer:
    """``base`` on ``before(grads, own hparams)``; keeps the base's state."""
    check_new_names(base, own)

    def init(params: Any, hparams: Any = None) -> Any:
        return base.init(params, extended(hparams, base, own)[0])

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        bases, owns = extended(hparams, base, own)
        check_grads(grads, params)
        for name, value in owns.items():
            check_zero_d(name, value)
        return base.update(before(grads, owns), state, params, bases)

    def start(params: Any, hparams: Any) -> Any:
        bases, owns = extended(hparams, base, own)
        return {**(base.start(params, bases) if base.start else bases), **owns}

    def settle(hparams: Any, new_state: Any) -> Any:
        bases, owns = extended(hparams, base, own)
        return {**(base.settle(bases, new_state) if base.settle else bases), **owns}

    has = (start if base.start else None, settle if base.settle else None)
    return Optimizer(init, update, {**base.hparams, **own}, *has, {**base.domains, **domains_of(own)}, base.tunes)
