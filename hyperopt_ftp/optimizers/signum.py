"""Signum."""

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


class SignumState(NamedTuple):
    """State of :func:`signum`."""

    exp_avg: Any  # tree like params: m


@explained(NO_PARAMS)
def signum(
    lr: HParam = 1e-4, momentum: HParam = 0.9, weight_decay: HParam = 0.0, *, maximize: bool = False
) -> Optimizer[SignumState]:
    """Signum (arXiv 1802.04434, Algorithm 2): the sign of the momentum; signSGD with ``momentum=0``.

    With weights ``W``, gradient ``g`` and ``mu`` = ``momentum``::

        m <- mu * m + (1 - mu) * g
        W <- W - lr * (sign(m) + weight_decay * W)

    Args:
        lr, momentum, weight_decay, maximize: as in :func:`adam`.

    Raises:
        ValueError: a number outside its domain (all >= 0).

    The paper has no decay; this one is decoupled, as in arXiv 1810.05291, Algorithm 1. For a coupled one add it to the
    loss.

    The sign has derivative 0, so the hypergradient of ``momentum`` is 0. Those of ``lr`` and ``weight_decay`` are
    exact.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.signum(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, momentum=momentum, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: None) -> Moved:
        m = blend(h["momentum"], s["exp_avg"], g)
        return minus(w, h["lr"], plus(torch.sign(m), h["weight_decay"], w)), {"exp_avg": m}

    return by_rule(rule, SignumState, default, maximize=maximize, entrywise=True, plain=True)
