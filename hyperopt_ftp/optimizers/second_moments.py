"""AdaBelief and Yogi: Adam with another second moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, root
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class AdaBeliefState(NamedTuple):
    """State of :func:`adabelief`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_var: Any  # tree like params: s, of squares of what m did not foresee


class YogiState(NamedTuple):
    """State of :func:`yogi`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v


@explained(NO_PARAMS)
def adabelief(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-16,
    *,
    maximize: bool = False,
) -> Optimizer[AdaBeliefState]:
    """AdaBelief (arXiv 2010.07468, Algorithm 2): steps are long where gradients are as their average foresees.

    With the symbols of :func:`adam`::

        m <- b1 * m + (1 - b1) * g
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps
        W <- W - lr * (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)

    Arguments and errors are those of :func:`adam`; for decay see :func:`decayed`. Equals ``optax.adabelief`` with
    ``eps_root`` = ``eps``, the authors' code's.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adabelief(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1111])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, betas=betas, eps=eps)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        (b1, b2), eps = h["betas"], h["eps"]
        m = blend(b1, s["exp_avg"], g)
        v = blend(b2, s["exp_avg_var"], (g - m) ** 2) + eps
        return minus(w, h["lr"] / (1 - b1**t), m, root(v / (1 - b2**t)) + eps), {"exp_avg": m, "exp_avg_var": v}

    return by_rule(rule, AdaBeliefState, default, maximize=maximize, entrywise=True, plain=True)


@explained(NO_PARAMS)
def yogi(
    lr: HParam = 1e-2,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-3,
    initial_accumulator_value: HParam = 1e-6,
    *,
    maximize: bool = False,
) -> Optimizer[YogiState]:
    """Yogi (Zaheer et al., 2018, Algorithm 2): Adam whose second moment changes by no more than the squared gradient.

    With the symbols of :func:`adam`::

        m <- b1 * m + (1 - b1) * g
        v <- v - (1 - b2) * sign(v - g^2) * g^2
        W <- W - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Arguments and errors are those of :func:`adam`. Differs from the paper as ``optax.yogi`` does, which it equals:
    ``m`` and ``v`` start at ``initial_accumulator_value``, an hparam that ``init`` alone reads, and are bias-corrected.
    The sign has derivative 0.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.yogi(lr=0.1, eps=0.0, initial_accumulator_value=0.0)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, betas=betas, eps=eps, initial_accumulator_value=initial_accumulator_value)

    def first(w: Tensor, h: Numbers) -> Entries:
        return {name: torch.zeros_like(w) + h["initial_accumulator_value"] for name in ("exp_avg", "exp_avg_sq")}

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        b1, b2 = h["betas"]
        m, v, square = blend(b1, s["exp_avg"], g), s["exp_avg_sq"], g * g
        v = minus(v, 1 - b2, torch.sign(v - square) * square)
        w = minus(w, h["lr"] / (1 - b1**t), m, root(v / (1 - b2**t)) + h["eps"])
        return w, {"exp_avg": m, "exp_avg_sq": v}

    return by_rule(rule, YogiState, default, first=first, maximize=maximize, entrywise=True, plain=True)
