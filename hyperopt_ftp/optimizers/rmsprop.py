"""RMSprop."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus, root
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class RMSpropState(NamedTuple):
    """State of :func:`rmsprop`."""

    square_avg: Any  # tree like params: v
    momentum_buffer: Any  # tree like params: b
    grad_avg: Any  # tree like params when centered, else ()


@explained(NO_PARAMS)
def rmsprop(
    lr: HParam = 1e-2,
    alpha: HParam = 0.99,
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    momentum: HParam = 0.0,
    centered: bool = False,
    *,
    nesterov: bool = False,
    maximize: bool = False,
) -> Optimizer[RMSpropState]:
    """RMSprop (Tieleman and Hinton, 2012); rule and defaults of :class:`torch.optim.RMSprop`.

    With weights ``W``, gradient ``g`` and ``mu`` = ``momentum``::

        g <- g + weight_decay * W
        v <- alpha * v + (1 - alpha) * g^2
        a <- alpha * a + (1 - alpha) * g            centered only; then v - a^2 stands for v below
        b <- mu * b + g / (sqrt(v) + eps)
        W <- W - lr * b                             or W - lr * (g / (sqrt(v) + eps) + mu * b) with nesterov

    Args:
        lr, alpha, eps, weight_decay, momentum, maximize: as in :func:`adam`.
        centered: normalise by the estimated variance (not an hparam).
        nesterov: as in TorchOpt (torch has none); needs ``momentum > 0`` (not an hparam).

    Raises:
        ValueError: a number outside its domain (``alpha`` in [0, 1], the others >= 0), or nesterov without momentum.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.rmsprop(lr=0.1, alpha=0.0)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    check_flag("centered", centered)
    check_flag("nesterov", nesterov)
    default = to_tensors(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
    if nesterov and isinstance(momentum, (int, float)) and momentum == 0:
        raise ValueError("nesterov needs momentum > 0, got momentum = 0")

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: None) -> Moved:
        g, alpha, mu = plus(g, h["weight_decay"], w), h["alpha"], h["momentum"]
        variance = blend(alpha, s["square_avg"], g * g)
        new = {"square_avg": variance}
        if centered:
            new["grad_avg"] = a = blend(alpha, s["grad_avg"], g)
            variance = minus(variance, a, a)
        step = g / (root(variance) + h["eps"])
        new["momentum_buffer"] = b = plus(step, mu, s["momentum_buffer"])
        return minus(w, h["lr"], plus(step, mu, b) if nesterov else b), new

    keeps = ("square_avg", "momentum_buffer", *(("grad_avg",) if centered else ()))
    return by_rule(rule, RMSpropState, default, keeps=keeps, maximize=maximize, entrywise=True, plain=True)
