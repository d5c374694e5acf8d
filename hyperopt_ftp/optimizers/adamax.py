"""Adamax."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class AdamaxState(NamedTuple):
    """State of :func:`adamax`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_inf: Any  # tree like params: infinity norm u


@explained(NO_PARAMS)
def adamax(
    lr: HParam = 2e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[AdamaxState]:
    """Adamax (arXiv 1412.6980, Algorithm 2); rule and defaults of :class:`torch.optim.Adamax`.

    With weights ``W``, gradient ``g``, ``(b1, b2)`` = ``betas`` and t counting from 1::

        g <- g + weight_decay * W
        m <- b1 * m + (1 - b1) * g
        u <- max(b2 * u, |g| + eps)
        W <- W - lr * (m / (1 - b1^t)) / u

    Args:
        lr, betas, eps, weight_decay, maximize: as in :func:`adam`. The paper has no ``eps`` and ``weight_decay``.

    Raises:
        ValueError: as :func:`adam`.

    A hypergradient follows the larger side of the max.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adamax(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        g, (b1, b2) = plus(g, h["weight_decay"], w), h["betas"]
        m = blend(b1, s["exp_avg"], g)
        u = torch.maximum(b2 * s["exp_inf"], g.abs() + h["eps"])
        return minus(w, h["lr"] / (1 - b1**t), m, u), {"exp_avg": m, "exp_inf": u}

    return by_rule(rule, AdamaxState, default, maximize=maximize, entrywise=True, plain=True)
