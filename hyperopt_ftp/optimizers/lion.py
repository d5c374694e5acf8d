"""Lion."""

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


class LionState(NamedTuple):
    """State of :func:`lion`."""

    exp_avg: Any  # tree like params: m


@explained(NO_PARAMS)
def lion(
    lr: HParam = 1e-4,
    betas: tuple[HParam, HParam] = (0.9, 0.99),
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[LionState]:
    """Lion (arXiv 2302.06675, Algorithm 2): the sign of an interpolated momentum, with decoupled weight decay.

    With weights ``W``, gradient ``g`` and ``(b1, b2)`` = ``betas``::

        u <- sign(b1 * m + (1 - b1) * g)
        W <- W - lr * (u + weight_decay * W)
        m <- b2 * m + (1 - b2) * g

    Args:
        lr, betas, weight_decay, maximize: as in :func:`adam`.

    Raises:
        ValueError: a number outside its domain (betas in [0, 1), the others >= 0).

    The sign has derivative 0, so hypergradients of ``betas`` are 0. Those of ``lr`` and ``weight_decay`` are exact.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.lion(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, betas=betas, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: None) -> Moved:
        (b1, b2), m = h["betas"], s["exp_avg"]
        u = torch.sign(blend(b1, m, g))
        return minus(w, h["lr"], plus(u, h["weight_decay"], w)), {"exp_avg": blend(b2, m, g)}

    return by_rule(rule, LionState, default, maximize=maximize, entrywise=True, plain=True)
