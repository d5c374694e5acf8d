"""NAdam."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus, root, shrunk
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "betas", "eps", "weight_decay")),
    "momentum_decay": Domain(0.0, math.inf, open_high=True),
}


class NAdamState(NamedTuple):
    """State of :func:`nadam`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v
    mu_product: Any  # tree of 0-d tensors: the product of all mu so far


@explained(NO_PARAMS)
def nadam(
    lr: HParam = 2e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    momentum_decay: HParam = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Optimizer[NAdamState]:
    """NAdam (Dozat, 2016): Adam with Nesterov momentum; rule and defaults of :class:`torch.optim.NAdam`.

    With weights ``W``, gradient ``g``, ``(b1, b2)`` = ``betas``, ``psi`` = ``momentum_decay`` and t counting from 1::

        g <- g + weight_decay * W           or W <- W - lr * weight_decay * W with decoupled_weight_decay
        mu(t) = b1 * (1 - 0.96^(t * psi) / 2)
        P <- P * mu(t)                      1 before the first update
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        n <- (1 - mu(t)) * g / (1 - P) + mu(t + 1) * m / (1 - P * mu(t + 1))
        W <- W - lr * n / (sqrt(v / (1 - b2^t)) + eps)

    Args:
        lr, betas, eps, weight_decay, momentum_decay, maximize: as in :func:`adam`. ``init`` gives ``P`` the shape of
            ``betas[0]`` and ``momentum_decay``.
        decoupled_weight_decay: the decay acts on the weights instead of the gradient (not an hparam).

    Raises:
        ValueError: a number outside its domain (betas in [0, 1), the others >= 0).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.nadam(lr=0.1, betas=(0.0, 0.0))
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    check_flag("decoupled_weight_decay", decoupled_weight_decay)
    default = to_tensors(
        _DOMAINS, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay
    )

    def first(w: Tensor, h: Numbers) -> Entries:
        return {"mu_product": torch.ones_like(h["betas"][0] * h["momentum_decay"])}

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (b1, b2), decay = h["lr"], h["betas"], h["weight_decay"]
        w, g = (shrunk(w, lr, decay), g) if decoupled_weight_decay else (w, plus(g, decay, w))
        now, after = (b1 * (1 - 0.5 * 0.96 ** (n * h["momentum_decay"])) for n in (t, t + 1))
        product = s["mu_product"] * now
        m, v = blend(b1, s["exp_avg"], g), blend(b2, s["exp_avg_sq"], g * g)
        nesterov = plus((1 - now) / (1 - product) * g, after / (1 - product * after), m)
        w = minus(w, lr, nesterov, root(v / (1 - b2**t)) + h["eps"])
        return w, {"exp_avg": m, "exp_avg_sq": v, "mu_product": product}

    return by_rule(
        rule, NAdamState, default, first=first, domains=_DOMAINS, maximize=maximize, entrywise=True, plain=True
    )
