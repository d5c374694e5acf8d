"""Adafactor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import DOMAINS, Domain, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import at_least, at_most, minus, safe_sqrt, shrunk, toward
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "eps", "weight_decay")),
    "beta2_decay": Domain(-math.inf, 0.0),
    "d": Domain(1.0, math.inf, open_high=True),
}
_BOTH = DOMAINS["eps"]._replace(parts=("eps1", "eps2"))


class AdafactorState(NamedTuple):
    """State of :func:`adafactor`. A tensor of two or more dimensions has the factors, another the variance.

    What a tensor has not is empty, of the shape (0,).
    """

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    row_var: Any  # tree: R, of the shape (..., n, 1) for weights of the shape (..., n, m)
    col_var: Any  # tree: C, of the shape (..., 1, m)
    variance: Any  # tree: V of a tensor of fewer than two dimensions


@explained(NO_PARAMS)
def adafactor(
    lr: HParam = 1e-2,
    beta2_decay: HParam = -0.8,
    eps: tuple[HParam | None, HParam] = (None, 1e-3),
    d: HParam = 1.0,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[AdafactorState]:
    """Adafactor (arXiv 1804.04235): a factored second moment; as :class:`torch.optim.Adafactor`.

    With weights ``W`` of the shape (..., n, m), gradient ``g``, ``(eps1, eps2)`` = ``eps``, t counting from 1, and
    ``rms(x)`` = sqrt(mean of x^2) over the whole tensor::

        s = max(eps2, rms(W)) * min(lr, 1 / sqrt(t))        the size of the step
        q = t^beta2_decay
        W <- W - lr * weight_decay * W
        R <- (1 - q) * R + q * mean over m of g^2
        C <- (1 - q) * C + q * mean over n of g^2
        V = R * C / max(mean over n of R, eps1)
        U = g / sqrt(max(V, eps1^2))
        W <- W - s * U / max(1, rms(U) / d)

    A tensor of fewer than two dimensions keeps ``V <- (1 - q) * V + q * g^2`` itself.

    Args:
        lr, beta2_decay, d, weight_decay, maximize: as in :func:`adam`. ``lr`` is the largest step size relative to the
            weights.
        eps: ``(eps1, eps2)``, each like ``lr``. ``eps1 = None`` is the machine epsilon of the dtype of the computation;
            the hparam ``"eps"`` is then ``eps2`` alone.

    Raises:
        ValueError: a number outside its domain (``beta2_decay`` <= 0, ``d`` >= 1, the others >= 0), or ``eps`` that is
            not a pair.

    Differs from torch: 16-bit weights are computed in float32, so ``eps1 = None`` is the epsilon of float32 there.
    torch's documentation says how torch differs from the paper (``lr``, and where ``eps1`` acts).

    A ``max`` or ``min`` has the derivative of the side that it takes: the hypergradient of ``eps2`` is 0 while the
    weights are larger, and that of ``d`` while nothing is clipped.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adafactor(lr=0.1)
    >>> w = torch.ones(2, 3)
    >>> w, state = opt.update(torch.ones(2, 3), opt.init(w), w)
    >>> w[0], state.row_var.shape, state.col_var.shape
    (tensor([0.9000, 0.9000, 0.9000]), torch.Size([2, 1]), torch.Size([1, 3]))
    """
    check_lr(lr)
    if not isinstance(eps, (tuple, list)) or len(eps) != 2:
        raise ValueError(f"eps must be a pair (eps1, eps2), where eps1 may be None, got {eps!r}")
    given = eps[0] is not None
    domains = _DOMAINS | {"eps": _BOTH} if given else _DOMAINS
    default = to_tensors(
        domains, lr=lr, beta2_decay=beta2_decay, eps=tuple(eps) if given else eps[1], d=d, weight_decay=weight_decay
    )

    def first(w: Tensor, h: Numbers) -> Entries:
        none = w.new_zeros(0)
        if w.ndim < 2:
            return {"row_var": none, "col_var": none}
        return {
            "row_var": w.new_zeros((*w.shape[:-1], 1)),
            "col_var": w.new_zeros((*w.shape[:-2], 1, w.shape[-1])),
            "variance": none,
        }

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (eps1, eps2) = h["lr"], h["eps"] if given else (torch.finfo(w.dtype).eps, h["eps"])
        size = at_least(_rms(w), eps2) * at_most(lr, t**-0.5)
        q, square, new = t ** h["beta2_decay"], g * g, dict(s)
        if w.ndim < 2:
            new["variance"] = v = toward(s["variance"], q, square)
        else:
            new["row_var"] = rows = toward(s["row_var"], q, _mean(square, -1))
            new["col_var"] = columns = toward(s["col_var"], q, _mean(square, -2))
            v = rows * columns / at_least(_mean(rows, -2), eps1)
        u = g / at_least(v, eps1 * eps1).sqrt()
        clip = at_least(_rms(u) / h["d"], 1.0)
        return minus(shrunk(w, lr, h["weight_decay"]), size / clip, u), new

    return by_rule(rule, AdafactorState, default, first=first, domains=domains, maximize=maximize, plain=True)


def _mean(x: Tensor, dim: int) -> Tensor:
    """0 over no entries, not NaN."""
    return x.sum(dim, keepdim=True) / max(x.shape[dim], 1)


def _rms(x: Tensor) -> Tensor:
    return safe_sqrt((x * x).sum() / max(x.numel(), 1))
