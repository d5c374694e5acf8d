"""Schedule-free SGD and AdamW: gradients are taken between a fast sequence and its average."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import check_count, explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import at_most, blend, minus, plus, root, toward
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_WEIGHTS = {
    "r": Domain(0.0, math.inf, open_high=True),
    "weight_lr_power": Domain(0.0, math.inf, open_high=True),
}
_SGD = {**domains_of(("lr", "momentum", "weight_decay")), **_WEIGHTS}
_ADAMW = {**domains_of(("lr", "betas", "eps", "weight_decay")), **_WEIGHTS}


class ScheduleFreeSGDState(NamedTuple):
    """State of :func:`schedule_free_sgd`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    z: Any  # tree like params: the fast sequence
    average: Any  # tree like params: x, the weights to deploy
    weight_sum: Any  # tree of 0-d tensors: S


class ScheduleFreeAdamWState(NamedTuple):
    """State of :func:`schedule_free_adamw`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    z: Any  # tree like params: the fast sequence
    average: Any  # tree like params: x, the weights to deploy
    weight_sum: Any  # tree of 0-d tensors: S
    exp_avg_sq: Any  # tree like params: second moment v


@explained(NO_PARAMS)
def schedule_free_sgd(
    lr: HParam = 1.0,
    momentum: HParam = 0.9,
    weight_decay: HParam = 0.0,
    warmup_steps: int = 0,
    r: HParam = 0.0,
    weight_lr_power: HParam = 2.0,
    *,
    maximize: bool = False,
) -> Optimizer[ScheduleFreeSGDState]:
    """Schedule-free SGD (arXiv 2405.15682): gradients are taken between a fast sequence and its average.

    The params are ``y``, where gradients are taken. The state has ``z``, and its average ``x`` as ``average``: the
    weights to evaluate and to deploy. With gradient ``g``, ``beta`` = ``momentum`` and t counting from 1::

        gamma = lr * min(1, t / warmup_steps)       lr without a warm-up
        g <- g + weight_decay * y
        z <- z - gamma * g
        p = t^r * gamma^weight_lr_power
        S <- S + p
        x <- x + (p / S) * (z - x)
        y = (1 - beta) * z + beta * x

    Args:
        lr, weight_decay, r, weight_lr_power, maximize: as in :func:`adam`. ``init`` gives ``S`` the shape of ``lr``,
            ``r`` and ``weight_lr_power``.
        momentum: place between ``z`` (0) and the average (1) where gradients are taken; like ``lr``.
        warmup_steps: a number of updates >= 0 (not an hparam).

    Raises:
        ValueError: a number outside its domain (all >= 0).

    Names and defaults are those of the authors' package. The package computes ``p`` from the largest ``gamma`` so far,
    here it is the present one, as in the paper. Both are equal while ``gamma`` does not fall.

    Only gradients move ``z`` and ``x``, so changes of the params from outside are lost. :func:`decayed`,
    :func:`lookahead`, and rules around an anchor that move weights (:func:`projected`, :func:`ftp`, :func:`spd` and
    others) therefore refuse this optimizer. Combinators that act on gradients or hparams accept it.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.schedule_free_sgd(lr=0.5, momentum=0.5)
    >>> y = torch.zeros(1); state = opt.init(y)
    >>> for _ in range(2):
    ...     y, state = opt.update(torch.ones(1), state, y)
    >>> y, state.z, state.average
    (tensor([-0.8750]), tensor([-1.]), tensor([-0.7500]))
    """
    check_lr(lr)
    check_count("warmup_steps", warmup_steps, "updates", least=0)
    default = to_tensors(
        _SGD, lr=lr, momentum=momentum, weight_decay=weight_decay, r=r, weight_lr_power=weight_lr_power
    )

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        return _moved(plus(g, h["weight_decay"], w), h["momentum"], s, h, t, warmup_steps)

    opt = by_rule(
        rule, ScheduleFreeSGDState, default, first=_first, domains=_SGD, maximize=maximize, entrywise=True, plain=True
    )
    return opt._replace(weights_in_state=True)


@explained(NO_PARAMS)
def schedule_free_adamw(
    lr: HParam = 2.5e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    warmup_steps: int = 0,
    r: HParam = 0.0,
    weight_lr_power: HParam = 2.0,
    *,
    maximize: bool = False,
) -> Optimizer[ScheduleFreeAdamWState]:
    """Schedule-free AdamW (arXiv 2405.15682, Algorithm 1), as in the authors' package.

    As :func:`schedule_free_sgd`, with ``(b1, b2)`` = ``betas``, ``b1`` for ``beta``, and for the step of ``z``::

        v <- b2 * v + (1 - b2) * g^2
        z <- z - gamma * (g / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * y)

    Arguments, errors and the average are those of :func:`schedule_free_sgd`; ``betas`` and ``eps`` are as in
    :func:`adamw`.

    Differs from the paper, as the package does: in the paper sqrt(1 - b2^t) is a factor of ``gamma``, so it also enters
    the decay and the weights of the average.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.schedule_free_adamw(lr=0.5, betas=(0.5, 0.999))
    >>> y = torch.zeros(1); state = opt.init(y)
    >>> for _ in range(2):
    ...     y, state = opt.update(torch.ones(1), state, y)
    >>> y, state.average
    (tensor([-0.8750]), tensor([-0.7500]))
    """
    check_lr(lr)
    check_count("warmup_steps", warmup_steps, "updates", least=0)
    default = to_tensors(
        _ADAMW, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, r=r, weight_lr_power=weight_lr_power
    )

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        b1, b2 = h["betas"]
        v = blend(b2, s["exp_avg_sq"], g * g)
        u = plus(g / (root(v / (1 - b2**t)) + h["eps"]), h["weight_decay"], w)
        w, new = _moved(u, b1, s, h, t, warmup_steps)
        return w, {**new, "exp_avg_sq": v}

    opt = by_rule(
        rule, ScheduleFreeAdamWState, default, first=_first, domains=_ADAMW, maximize=maximize, entrywise=True,
        plain=True,
    )  # fmt: skip
    return opt._replace(weights_in_state=True)


def _first(w: Tensor, h: Numbers) -> Entries:
    # Copies, so that no two trees share memory.
    return {
        "z": w.clone(),
        "average": w.clone(),
        "weight_sum": torch.zeros_like(h["lr"] * h["r"] * h["weight_lr_power"]),
    }


def _moved(u: Tensor, beta: Any, s: Entries, h: Numbers, t: Any, warmup_steps: int) -> Moved:
    """New y, and the state, after a step of z against ``u``."""
    gamma = h["lr"] * at_most(t / warmup_steps, 1.0) if warmup_steps else h["lr"]
    weight = t ** h["r"] * gamma ** h["weight_lr_power"]
    total = s["weight_sum"] + weight
    share = weight / torch.where(total == 0, 1.0, total)  # 0 where lr has been 0 so far
    z = minus(s["z"], gamma, u)
    x = toward(s["average"], share, z)
    return blend(beta, x, z), {"z": z, "average": x, "weight_sum": total}
