"""Rprop."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import explained
from ..hparams import DOMAINS, Domain, check_number, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import at_least, at_most, minus
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    "lr": DOMAINS["lr"],
    "etas": Domain(0.0, math.inf, open_high=True, parts=("etaminus", "etaplus")),
    "step_sizes": Domain(0.0, math.inf, parts=("step_size_min", "step_size_max")),
}
_ETAS = {"etaminus": Domain(0.0, 1.0, open_high=True), "etaplus": Domain(1.0, math.inf, open_high=True)}


class RpropState(NamedTuple):
    """State of :func:`rprop`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    prev: Any  # tree like params: gradient of the last update, 0 where it turned back
    step_size: Any  # tree like params: s


@explained(NO_PARAMS)
def rprop(
    lr: HParam = 1e-2,
    etas: tuple[HParam, HParam] = (0.5, 1.2),
    step_sizes: tuple[HParam, HParam] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> Optimizer[RpropState]:
    """Rprop (Riedmiller and Braun, 1993): steps by the sign; rule and defaults of :class:`torch.optim.Rprop`.

    With weights ``W``, gradient ``g``, ``p`` the ``g`` of the last update (0 at first), step sizes ``s`` (``lr`` at
    first), and ``low, high`` = ``step_sizes``, entry by entry::

        s <- clamp(s * etaplus, low, high)                  where g * p > 0
        s <- clamp(s * etaminus, low, high) and g <- 0      where g * p < 0
        s <- clamp(s, low, high)                            elsewhere
        W <- W - s * sign(g)

    Args:
        lr: the first step size, as in :func:`adam`. It is read by ``init`` only, so its derivative through one update
            is 0.
        etas: ``(etaminus, etaplus)``, each like ``lr``.
        step_sizes: the smallest and the largest step size, each like ``lr``.
        maximize: as in :func:`adam`.

    Raises:
        ValueError: a number outside its domain (``lr`` and ``step_sizes`` >= 0, etaminus in [0, 1), etaplus >= 1).

    Signs have derivative 0: only step sizes carry a hypergradient, which is exact where no sign changes.

    Differs from the paper, as torch does: where the sign of the gradient changes, the last step is not undone. Differs
    from torch: the limits ``etaminus = 0`` and ``etaplus = 1`` are allowed.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.rprop(lr=0.1)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for g in (3.0, 2.0, -1.0):
    ...     w, state = opt.update(torch.tensor([g]), state, w)
    >>> w, state.step_size
    (tensor([-0.2200]), tensor([0.0600]))
    """
    check_lr(lr)
    default = to_tensors(_DOMAINS, lr=lr, etas=etas, step_sizes=step_sizes)
    for (name, domain), eta in zip(_ETAS.items(), etas, strict=True):
        for value in tree.leaves(eta):
            check_number(name, value, domain)

    def first(w: Tensor, h: Numbers) -> Entries:
        return {"step_size": torch.zeros_like(w) + h["lr"]}

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        (etaminus, etaplus), (low, high) = h["etas"], h["step_sizes"]
        same, size = g * s["prev"], s["step_size"]
        size = torch.where(same > 0, size * etaplus, torch.where(same < 0, size * etaminus, size))
        size = at_most(at_least(size, low), high)
        g = torch.where(same < 0, 0.0, g)
        return minus(w, size, g.sign()), {"prev": g, "step_size": size}

    return by_rule(
        rule, RpropState, default, first=first, domains=_DOMAINS, maximize=maximize, entrywise=True, plain=True
    )
