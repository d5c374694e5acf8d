"""ASGD."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ..calls import explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import at_least, minus, plus, shrunk, toward
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "weight_decay")),
    "lambd": Domain(0.0, math.inf, open_high=True),
    "alpha": Domain(0.0, math.inf, open_high=True),  # an exponent, unlike that of DOMAINS
    "t0": Domain(0.0, math.inf),
}


class ASGDState(NamedTuple):
    """State of :func:`asgd`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    ax: Any  # tree like params: the average of the weights


@explained(NO_PARAMS)
def asgd(
    lr: HParam = 1e-2,
    lambd: HParam = 1e-4,
    alpha: HParam = 0.75,
    t0: HParam = 1e6,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[ASGDState]:
    """Averaged SGD (Polyak and Juditsky, 1992); rule and defaults of :class:`torch.optim.ASGD`.

    With weights ``W``, gradient ``g`` and ``n`` updates done before this one::

        eta = lr / (1 + lambd * lr * n)^alpha
        mu = 1 / max(1, n - t0)
        g <- g + weight_decay * W
        W <- W - lambd * eta * W - eta * g
        ax <- ax + mu * (W - ax)

    The average ``ax`` is part of the state. It does not act on the weights.

    Args:
        lr, lambd, alpha, weight_decay, maximize: as in :func:`adam`.
        t0: like ``lr``: the update after which ``ax`` becomes an average. Until then it is the weights.

    Raises:
        ValueError: a number outside its domain (all >= 0; ``t0`` may be infinite).

    Differs from torch, which computes ``eta`` and ``mu`` after an update for the next one. Here an ``lr`` acts in the
    update that gets it, and has a hypergradient there. With constant hparams both are equal.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.asgd(lr=0.5, lambd=0.0, t0=0.0)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(torch.ones(1), state, w)
    >>> w, state.ax
    (tensor([-1.5000]), tensor([-1.2500]))
    """
    check_lr(lr)
    default = to_tensors(_DOMAINS, lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, lambd, done = h["lr"], h["lambd"], t - 1
        eta = lr / (1 + lambd * lr * done) ** h["alpha"]
        mu = 1 / at_least(done - h["t0"], 1.0)
        w = minus(shrunk(w, eta, lambd), eta, plus(g, h["weight_decay"], w))
        return w, {"ax": toward(s["ax"], mu, w)}  # the weights themselves where mu is 1

    return by_rule(rule, ASGDState, default, domains=_DOMAINS, maximize=maximize, entrywise=True, plain=True)
