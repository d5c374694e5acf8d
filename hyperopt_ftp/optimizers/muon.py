"""Muon."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import check_choice, check_count, check_flag, explained
from ..hparams import Domain, domains_of, to_tensors
from ..types import AdjustLR, HParam, Optimizer
from .arithmetic import at_least, blend, minus, plus, root, shrunk
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "weight_decay", "momentum", "eps")),
    "ns_coefficients": Domain(-math.inf, math.inf, parts=("a", "b", "c")),
}


class MuonState(NamedTuple):
    """State of :func:`muon`."""

    momentum_buffer: Any  # tree like params: B


@explained(NO_PARAMS)
def muon(
    lr: HParam = 1e-3,
    weight_decay: HParam = 0.1,
    momentum: HParam = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[HParam, HParam, HParam] = (3.4445, -4.775, 2.0315),
    eps: HParam = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: AdjustLR | None = None,
    *,
    maximize: bool = False,
    ns_dtype: torch.dtype | None = None,
) -> Optimizer[MuonState]:
    """Muon (Jordan et al., 2024): nearly orthogonal momentum of a matrix; as :class:`torch.optim.Muon`.

    With weights ``W`` of the shape (n, m), gradient ``g``, ``mu`` = ``momentum`` and ``(a, b, c)`` =
    ``ns_coefficients``::

        B <- mu * B + (1 - mu) * g
        X = B                                       or mu * B + (1 - mu) * g with nesterov
        X = X / max(||X||, eps)                     Frobenius norm
        A = X @ X^T                                 the smaller of the two products
        X = a * X + (b * A + c * A @ A) @ X         these two lines ns_steps times (Newton-Schulz)
        W <- W - lr * weight_decay * W - lr * s * X

    where ``s`` is sqrt(max(1, n / m)), or 0.2 * sqrt(max(n, m)) for ``adjust_lr_fn="match_rms_adamw"``. Use it for the
    matrices of hidden layers only, and another optimizer for the other tensors (:func:`partition`).

    Args:
        lr, weight_decay, momentum, eps, maximize: as in :func:`adam`.
        nesterov: Nesterov momentum (not an hparam).
        ns_coefficients: ``(a, b, c)``, each like ``lr``.
        ns_steps: a whole number >= 1 (not an hparam).
        adjust_lr_fn: ``"original"``, which is ``None`` too, or ``"match_rms_adamw"``, which keeps ``lr`` and
            ``weight_decay`` that were tuned for AdamW (arXiv 2502.16982) (not an hparam).
        ns_dtype: the dtype to which the Newton-Schulz steps are rounded; ``None``: no rounding (not an hparam).

    Raises:
        ValueError: a number outside its domain (coefficients may be any, the others >= 0); a tensor that is not a
            matrix, at ``init``.

    Differs from torch, which computes the Newton-Schulz steps in bfloat16. Here they have the precision of the update,
    since rounding has no useful derivative. ``ns_dtype=torch.bfloat16`` rounds as torch does, and equals it step by
    step; hypergradients are then rounded, too.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.muon(lr=0.1, weight_decay=0.0)
    >>> w = torch.zeros(2, 2)
    >>> w, state = opt.update(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), opt.init(w), w)
    >>> w
    tensor([[-0.1108,  0.0000],
            [ 0.0000, -0.1108]])
    """
    check_lr(lr)
    check_flag("nesterov", nesterov)
    check_count("ns_steps", ns_steps, "Newton-Schulz steps")
    if adjust_lr_fn is not None:
        check_choice("adjust_lr_fn", adjust_lr_fn, ("original", "match_rms_adamw"))
    if ns_dtype is not None and not (isinstance(ns_dtype, torch.dtype) and ns_dtype.is_floating_point):
        raise TypeError(f"ns_dtype must be None or a floating-point dtype such as torch.bfloat16, got {ns_dtype!r}")
    default = to_tensors(
        _DOMAINS, lr=lr, weight_decay=weight_decay, momentum=momentum, ns_coefficients=ns_coefficients, eps=eps
    )

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: None) -> Moved:
        (n, m), lr, mu = w.shape, h["lr"], h["momentum"]
        b = blend(mu, s["momentum_buffer"], g)
        x = blend(mu, b, g) if nesterov else b
        x = _orthogonalized(x, h["ns_coefficients"], h["eps"], ns_steps, ns_dtype)
        scale = 0.2 * max(n, m) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, n / max(m, 1)) ** 0.5
        return minus(shrunk(w, lr, h["weight_decay"]), lr * scale, x), {"momentum_buffer": b}

    opt = by_rule(rule, MuonState, default, domains=_DOMAINS, maximize=maximize, plain=True)

    def init(params: Any, hparams: Any = None) -> MuonState:
        state = opt.init(params, hparams)
        for name, w in tree.named(params):
            if w.ndim != 2:
                raise ValueError(
                    f"muon is for matrices, but parameter {name!r} has the shape {tuple(w.shape)}; with hft.partition "
                    "the matrices get muon and the others another optimizer, such as adamw"
                )
        return state

    return opt._replace(init=init)


def _orthogonalized(
    x: Tensor, coefficients: tuple[Any, Any, Any], eps: Any, steps: int, dtype: torch.dtype | None = None
) -> Tensor:
    """The Newton-Schulz steps of :func:`muon`: each singular value s of ``x / ||x||`` becomes a s + b s^3 + c s^5.

    With a ``dtype`` each result is rounded to it; sums of 16-bit products are taken in float32.
    """
    a, b, c = coefficients
    precision, tall = x.dtype, x.shape[0] > x.shape[1]

    def rounded(x: Tensor) -> Tensor:
        return x if dtype is None else tree.working(x.to(dtype))

    x = rounded(x.mT if tall else x)
    x = rounded(x / at_least(rounded(root((x * x).sum())), eps))
    for _ in range(steps):
        gram = rounded(x @ x.mT)
        x = rounded(plus(rounded(plus(b * gram, c, gram @ gram)) @ x, a, x))
    return (x.mT if tall else x).to(precision)
