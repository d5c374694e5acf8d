"""Adagrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer
from .arithmetic import minus, plus, root, times
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class AdagradState(NamedTuple):
    """State of :func:`adagrad`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    sum: Any  # tree like params: accumulated g^2


@explained(NO_PARAMS)
def adagrad(
    lr: HParam = 1e-2,
    lr_decay: HParam = 0.0,
    weight_decay: HParam = 0.0,
    initial_accumulator_value: HParam = 0.0,
    eps: HParam = 1e-10,
    *,
    maximize: bool = False,
) -> Optimizer[AdagradState]:
    """Adagrad (Duchi et al., 2011); rule and defaults of :class:`torch.optim.Adagrad`.

    With weights ``W``, gradient ``g``, and t counting from 1; ``s`` starts at ``initial_accumulator_value``::

        g <- g + weight_decay * W
        s <- s + g^2
        W <- W - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        lr, lr_decay, weight_decay, eps, maximize: as in :func:`adam`.
        initial_accumulator_value: like ``lr``; read by ``init`` only.

    Raises:
        ValueError: a number below 0, infinite or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adagrad(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(
        lr=lr, lr_decay=lr_decay, weight_decay=weight_decay,
        initial_accumulator_value=initial_accumulator_value, eps=eps,
    )  # fmt: skip

    def first(w: Tensor, h: Numbers) -> Entries:
        return {"sum": torch.zeros_like(w) + h["initial_accumulator_value"]}

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        g = plus(g, h["weight_decay"], w)
        total = plus(s["sum"], g, g)
        rate = times(1 / (1 + (t - 1) * h["lr_decay"]), h["lr"])
        return minus(w, rate, g, root(total) + h["eps"]), {"sum": total}

    return by_rule(rule, AdagradState, default, first=first, maximize=maximize, entrywise=True, plain=True)
