"""LAMB and LARS: a step is as long as the weights of its tensor say."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus, root, safe_sqrt
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "momentum", "weight_decay", "eps")),
    "trust_coefficient": Domain(0.0, float("inf"), open_high=True),
}


class LambState(NamedTuple):
    """State of :func:`lamb`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v


class LarsState(NamedTuple):
    """State of :func:`lars`."""

    momentum_buffer: Any  # tree like params: B


@explained(NO_PARAMS)
def lamb(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-6,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[LambState]:
    """LAMB (arXiv 1904.00962, Algorithm 2): steps of Adam, each ``lr`` times as long as the weights of its tensor.

    With the symbols of :func:`adam`::

        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * W
        W <- W - lr * (||W|| / ||u||) * u           l2 norms of the tensor; their ratio is 1 if one of them is 0

    Arguments and errors are those of :func:`adam`; the paper's weight decay is 0.01, its phi the identity here. Equals
    ``optax.lamb``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.lamb(lr=0.1)
    >>> w, state = opt.update(torch.tensor([5.0, 5.0]), opt.init(torch.ones(2)), torch.tensor([3.0, 4.0]))
    >>> w  # sqrt(1/2) in each entry: the weights have the norm 5
    tensor([2.6464, 3.6464])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        b1, b2 = h["betas"]
        m, v = blend(b1, s["exp_avg"], g), blend(b2, s["exp_avg_sq"], g * g)
        u = plus(m / (1 - b1**t) / (root(v / (1 - b2**t)) + h["eps"]), h["weight_decay"], w)
        return minus(w, h["lr"] * _ratio(_norm(w), _norm(u)), u), {"exp_avg": m, "exp_avg_sq": v}

    return by_rule(rule, LambState, default, maximize=maximize, plain=True)


@explained(NO_PARAMS)
def lars(
    lr: HParam = 1.0,
    momentum: HParam = 0.9,
    weight_decay: HParam = 0.0,
    trust_coefficient: HParam = 1e-3,
    eps: HParam = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Optimizer[LarsState]:
    """LARS (arXiv 1708.03888, Algorithm 1): SGD whose rate is by the norms of each tensor and of its gradient.

    With weights ``W``, gradient ``g`` and ``mu`` = ``momentum``::

        r = trust_coefficient * ||W|| / (||g|| + weight_decay * ||W|| + eps)    1 if ||W|| or the sum of norms is 0
        d = lr * r * (g + weight_decay * W)
        B <- mu * B + d
        W <- W - B                                                              or W - (mu * B + d) with nesterov

    Args:
        lr, momentum, weight_decay, trust_coefficient, eps: the hparams, all >= 0. The paper has no ``eps``.
        nesterov, maximize: as in :func:`sgd` (not hparams).

    Raises:
        ValueError: a number outside its domain.

    Equals ``optax.lars`` without weight decay. With it optax divides by ``||g + weight_decay * W||``, the paper by the
    sum of norms. A tensor of zeros, such as a bias at its start, moves as by SGD, where the ratio would hold it at 0.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.lars(lr=1.0, trust_coefficient=0.1)
    >>> w, state = opt.update(torch.tensor([0.0, 2.0]), opt.init(torch.ones(2)), torch.tensor([3.0, 4.0]))
    >>> w
    tensor([3.0000, 3.5000])
    """
    check_lr(lr)
    check_flag("nesterov", nesterov)
    default = to_tensors(
        _DOMAINS, lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient, eps=eps
    )

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: None) -> Moved:
        mu, decay, size = h["momentum"], h["weight_decay"], _norm(w)
        r = _ratio(size, plus(_norm(g), decay, size), h["trust_coefficient"], h["eps"])
        d = h["lr"] * r * plus(g, decay, w)
        b = plus(d, mu, s["momentum_buffer"])
        return w - (plus(d, mu, b) if nesterov else b), {"momentum_buffer": b}

    return by_rule(rule, LarsState, default, domains=_DOMAINS, maximize=maximize, plain=True)


def _norm(x: Tensor) -> Tensor:
    size = x.abs().sum()  # the square of 1e-24 is 0 in float32
    return size * safe_sqrt((x / torch.where(size > 0, size, 1.0)).square().sum())


def _ratio(top: Tensor, bottom: Tensor, factor: Any = 1.0, eps: Any = 0.0) -> Tensor:
    both = (top > 0) & (bottom > 0)
    return torch.where(both, factor * top / (torch.where(both, bottom, 1.0) + eps), 1.0)
