"""Adam and AdamW: one rule, with weight decay inside or outside the moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import Domain, check_number, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, is_mapped, minus, plus, root, shrunk
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class AdamState(NamedTuple):
    """State of :func:`adam` and :func:`adamw`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v
    max_exp_avg_sq: Any  # tree like params with amsgrad, else ()


@explained(NO_PARAMS)
def adam(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    eps_root: float = 0.0,
) -> Optimizer[AdamState]:
    """Adam (arXiv 1412.6980) with coupled weight decay; rule and defaults of :class:`torch.optim.Adam`.

    With weights ``W``, gradient ``g``, ``(b1, b2)`` = ``betas`` and t counting from 1::

        g <- g + weight_decay * W
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        W <- W - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t) + eps_root) + eps)

    Args:
        lr, betas, eps, weight_decay: the hparams: numbers, 0-d tensors, or trees of them (one for each parameter).
        amsgrad: use the largest ``v`` so far (not an hparam).
        maximize: maximize the loss: ``g <- -g`` first (not an hparam).
        eps_root: a number added inside the root, for hypergradients near a zero second moment (not an hparam). The
            root's derivative at exactly 0 is defined as 0 in any case, so a dead unit gives 0 and not NaN.

    Raises:
        ValueError: a number outside its domain (``lr``, ``eps``, ``weight_decay`` >= 0, betas in [0, 1)).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adam(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    return _adam(lr, betas, eps, weight_decay, amsgrad, maximize, eps_root, decoupled=False)


@explained(NO_PARAMS)
def adamw(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    eps_root: float = 0.0,
) -> Optimizer[AdamState]:
    """AdamW (arXiv 1711.05101): Adam with decoupled weight decay; rule and defaults of :class:`torch.optim.AdamW`.

    As :func:`adam`, but the decay acts on the weights instead of the gradient::

        W <- W - lr * weight_decay * W - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t) + eps_root) + eps)

    Arguments and errors are those of :func:`adam`; ``weight_decay`` is 0.01 by default.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adamw(lr=0.1, weight_decay=0.5)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.ones(1)), torch.ones(1))
    >>> w
    tensor([0.8500])
    """
    return _adam(lr, betas, eps, weight_decay, amsgrad, maximize, eps_root, decoupled=True)


def _adam(
    lr: HParam,
    betas: tuple[HParam, HParam],
    eps: HParam,
    weight_decay: HParam,
    amsgrad: bool,
    maximize: bool,
    eps_root: float,
    decoupled: bool,
) -> Optimizer[AdamState]:
    check_lr(lr)
    check_flag("amsgrad", amsgrad)
    default = to_tensors(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    check_number("eps_root", eps_root, Domain(0.0, float("inf"), open_high=True))

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (b1, b2), decay = h["lr"], h["betas"], h["weight_decay"]
        w, g = (shrunk(w, lr, decay), g) if decoupled else (w, plus(g, decay, w))
        m, v = blend(b1, s["exp_avg"], g), blend(b2, s["exp_avg_sq"], g * g)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if amsgrad:
            new["max_exp_avg_sq"] = v = torch.maximum(s["max_exp_avg_sq"], v)
        # As at the end of section 2 of the paper: both sides of the fraction times sqrt(1 - b2^t), a number.
        bias = 1 - b2**t
        if is_mapped(bias) if isinstance(bias, Tensor) else bias < 0:  # as v is, where ZeroOrder looks beyond b2 = 1
            sign = bias.sign() if isinstance(bias, Tensor) else -1.0
            v, bias = sign * v, abs(bias)
        scale = bias**0.5
        bottom = root(v + eps_root * bias if eps_root else v) + h["eps"] * scale
        return minus(w, lr * (scale / (1 - b1**t)), m, bottom), new

    keeps = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
    return by_rule(rule, AdamState, default, keeps=keeps, maximize=maximize, entrywise=True, plain=True)
