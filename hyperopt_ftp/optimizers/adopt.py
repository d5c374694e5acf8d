"""ADOPT."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import at_least, at_most, blend, minus, plus, root, shrunk, where
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "betas", "eps", "weight_decay")),
    "clip_power": Domain(0.0, math.inf, open_high=True),
}


class AdoptState(NamedTuple):
    """State of :func:`adopt`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v


@explained(NO_PARAMS)
def adopt(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.9999),
    eps: HParam = 1e-6,
    weight_decay: HParam = 0.0,
    clip_power: HParam | None = 0.25,
    *,
    decoupled: bool = False,
    maximize: bool = False,
) -> Optimizer[AdoptState]:
    """ADOPT (arXiv 2411.02853, Algorithm 2): Adam that normalizes a gradient by the previous second moment.

    With weights ``W``, gradient ``g``, ``(b1, b2)`` = ``betas`` and n, the number of updates before this one::

        g <- g + weight_decay * W                   or W <- W - lr * weight_decay * W with decoupled
        if n = 0: v <- g^2, and nothing else
        u = g / max(sqrt(v), eps)
        u <- clamp(u, -n^clip_power, n^clip_power)
        m <- b1 * m + (1 - b1) * u
        W <- W - lr * m
        v <- b2 * v + (1 - b2) * g^2

    Args:
        lr, betas, eps, weight_decay, maximize: as in :func:`adam`.
        clip_power: like ``lr``. ``None``: no clipping, as in the first version of the paper, and no such hparam.
        decoupled: the decay acts on the weights instead of the gradient (not an hparam).

    Raises:
        ValueError: a number outside its domain (betas in [0, 1), the others >= 0).

    The paper has no decay. Both kinds, the names and the defaults are those of the authors' code, which has a function
    ``clip_lambda`` instead of ``clip_power``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adopt(lr=0.1, betas=(0.0, 0.9))
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(2):
    ...     w, state = opt.update(torch.tensor([3.0]), state, w)
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    check_flag("decoupled", decoupled)
    clip = {} if clip_power is None else {"clip_power": clip_power}
    default = to_tensors(_DOMAINS, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **clip)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (b1, b2), decay, v = h["lr"], h["betas"], h["weight_decay"], s["exp_avg_sq"]
        g = g if decoupled else plus(g, decay, w)
        begun, square = t > 1, g * g
        if begun is False:
            return w, {"exp_avg": s["exp_avg"], "exp_avg_sq": square}
        # What the first update does not use must have a derivative all the same: NaN times 0 is NaN.
        u = g / at_least(root(where(begun, v, 1.0)), h["eps"])
        if clip_power is not None:
            most = at_least(t - 1, 1) ** h["clip_power"]
            u = at_most(at_least(u, -most), most)
        m, v = blend(b1, s["exp_avg"], u), blend(b2, v, square)
        moved = minus(shrunk(w, lr, decay) if decoupled else w, lr, m)
        new = {"exp_avg": where(begun, m, s["exp_avg"]), "exp_avg_sq": where(begun, v, square)}
        return where(begun, moved, w), new

    domains = {name: _DOMAINS[name] for name in default}
    return by_rule(rule, AdoptState, default, domains=domains, maximize=maximize, entrywise=True, plain=True)
