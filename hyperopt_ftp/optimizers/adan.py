"""Adan."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..calls import explained
from ..hparams import DOMAINS, domains_of, to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, is_zero, minus, plus, root, where
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr

_DOMAINS = {
    **domains_of(("lr", "eps", "weight_decay")),
    "betas": DOMAINS["betas"]._replace(parts=("beta1", "beta2", "beta3")),
}


class AdanState(NamedTuple):
    """State of :func:`adan`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: m, of gradients
    exp_avg_diff: Any  # tree like params: v, of differences of gradients
    exp_avg_sq: Any  # tree like params: n, of squares
    previous: Any  # tree like params: gradient of the last update


@explained(NO_PARAMS)
def adan(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam, HParam] = (0.98, 0.92, 0.99),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    *,
    maximize: bool = False,
) -> Optimizer[AdanState]:
    """Adan (arXiv 2208.06677, Algorithm 1): Nesterov momentum from differences of gradients.

    With weights ``W``, gradient ``g``, ``p`` the gradient of the last update (``g`` itself at the first),
    ``(b1, b2, b3)`` = ``betas`` and t counting from 1::

        d = g - p
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * d
        n <- b3 * n + (1 - b3) * (g + b2 * d)^2
        u = (m / (1 - b1^t) + b2 * v / (1 - b2^t)) / (sqrt(n / (1 - b3^t)) + eps)
        W <- (W - lr * u) / (1 + lr * weight_decay)

    Args:
        lr, eps, weight_decay, maximize: as in :func:`adam`.
        betas: ``(b1, b2, b3)``, each like ``lr``. They are one minus the paper's betas.

    Raises:
        ValueError: a number outside its domain (betas in [0, 1), the others >= 0).

    Differs from the paper, as the authors' code does: averages start at 0 and are bias-corrected, as in Adam. The decay
    is the paper's proximal one.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adan(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(_DOMAINS, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (b1, b2, b3), decay = h["lr"], h["betas"], h["weight_decay"]
        d = g - where(t > 1, s["previous"], g)
        ahead = plus(g, b2, d)
        m, v = blend(b1, s["exp_avg"], g), blend(b2, s["exp_avg_diff"], d)
        n = blend(b3, s["exp_avg_sq"], ahead * ahead)
        top, bottom = plus(m / (1 - b1**t), b2 / (1 - b2**t), v), root(n / (1 - b3**t)) + h["eps"]
        w = minus(w, lr, top, bottom)
        new = {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "previous": g}
        return w if is_zero(decay) else w / (1 + lr * decay), new

    return by_rule(rule, AdanState, default, domains=_DOMAINS, maximize=maximize, entrywise=True, plain=True)
