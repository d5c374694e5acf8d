"""Adadelta."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..calls import explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus, root
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {**domains_of(("lr", "eps", "weight_decay")), "rho": Domain(0.0, 1.0)}


class AdadeltaState(NamedTuple):
    """State of :func:`adadelta`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    square_avg: Any  # tree like params: v
    acc_delta: Any  # tree like params: u


@explained(NO_PARAMS)
def adadelta(
    lr: HParam = 1.0,
    rho: HParam = 0.9,
    eps: HParam = 1e-6,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[AdadeltaState]:
    """Adadelta (arXiv 1212.5701, Algorithm 1); rule and defaults of :class:`torch.optim.Adadelta`.

    With weights ``W`` and gradient ``g``::

        g <- g + weight_decay * W
        v <- rho * v + (1 - rho) * g^2
        d <- sqrt(u + eps) / sqrt(v + eps) * g
        u <- rho * u + (1 - rho) * d^2
        W <- W - lr * d

    Args:
        lr, rho, eps, weight_decay, maximize: as in :func:`adam`. The paper has no ``lr`` and ``weight_decay``.

    Raises:
        ValueError: a number outside its domain (``rho`` in [0, 1], the others >= 0).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adadelta(rho=0.0, eps=0.25)
    >>> w, state = opt.update(torch.ones(1), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.4472])
    """
    check_lr(lr)
    default = to_tensors(_DOMAINS, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        g, rho, eps = plus(g, h["weight_decay"], w), h["rho"], h["eps"]
        v = blend(rho, s["square_avg"], g * g)
        d = root(s["acc_delta"] + eps) / root(v + eps) * g
        return minus(w, h["lr"], d), {"square_avg": v, "acc_delta": blend(rho, s["acc_delta"], d * d)}

    return by_rule(rule, AdadeltaState, default, domains=_DOMAINS, maximize=maximize, entrywise=True, plain=True)
