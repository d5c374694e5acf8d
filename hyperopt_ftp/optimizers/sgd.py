"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..calls import check_flag, explained
from ..hparams import concrete, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import is_zero, minus, plus, times, where
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class SGDState(NamedTuple):
    """State of :func:`sgd`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    momentum_buffer: Any  # tree like params


@explained(NO_PARAMS)
def sgd(
    lr: HParam = 1e-3,
    momentum: HParam = 0.0,
    dampening: HParam = 0.0,
    weight_decay: HParam = 0.0,
    *,
    nesterov: bool = False,
    maximize: bool = False,
) -> Optimizer[SGDState]:
    """Stochastic gradient descent; rule and defaults of :class:`torch.optim.SGD`.

    With weights ``W``, gradient ``g``, ``mu`` = ``momentum``, ``tau`` = ``dampening``::

        g <- g + weight_decay * W
        b <- g                          first step
        b <- mu * b + (1 - tau) * g     later steps
        W <- W - lr * b                 or W - lr * (g + mu * b) with nesterov

    Args:
        lr, momentum, dampening, weight_decay, maximize: as in :func:`adam`.
        nesterov: needs ``momentum > 0`` and ``dampening = 0`` (not an hparam).

    Raises:
        ValueError: a number outside its domain, or nesterov without momentum or with dampening.

    Differs from torch: the buffer is kept also if momentum is 0, so that the hypergradient at momentum 0 is right.
    Dampening has no effect then, as in torch.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.sgd(lr=0.1, momentum=0.9)
    >>> w, state = torch.tensor([1.0]), opt.init(torch.tensor([1.0]))
    >>> for _ in range(2):
    ...     w, state = opt.update(torch.tensor([1.0]), state, w)
    >>> w
    tensor([0.7100])
    """
    check_lr(lr)
    check_flag("nesterov", nesterov)
    default = to_tensors(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    check_nesterov(momentum, dampening, nesterov)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        g, mu, tau = plus(g, h["weight_decay"], w), h["momentum"], h["dampening"]
        if not is_zero(tau):
            tau = where((mu != 0) & (t > 1), tau, 0.0)
        b = times(1 - tau, g)
        if not is_zero(mu):
            b = plus(b, mu, s["momentum_buffer"])  # which is 0 at the first step
        return minus(w, h["lr"], plus(g, mu, b) if nesterov else b), {"momentum_buffer": b}

    return by_rule(rule, SGDState, default, maximize=maximize, join_from=5, entrywise=True, plain=True)


def check_nesterov(momentum: Any, dampening: Any, nesterov: bool) -> None:
    # A tuner may move a tensor away from 0.
    still = not any(isinstance(x, Tensor) or x != 0 for x in tree.leaves(momentum))
    if nesterov and (still or not all(map(_is_zero, tree.leaves(dampening)))):
        raise ValueError(
            f"nesterov needs momentum > 0 and dampening = 0, got momentum = {momentum} and dampening = {dampening}"
        )


def _is_zero(value: Any) -> bool:
    """One that is traced cannot be looked at, and is taken for 0."""
    if not isinstance(value, Tensor):
        return value == 0
    return not concrete(value) or bool((value == 0).all())
