"""RAdam."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer
from .arithmetic import blend, minus, plus, root, shrunk, where
from .by_rule import Entries, Moved, Numbers, by_rule
from .leafwise import NO_PARAMS, check_lr


class RAdamState(NamedTuple):
    """State of :func:`radam`."""

    step: Any  # shape (), int64: updates done; a tree of them, one for each leaf, once a gradient was None
    exp_avg: Any  # tree like params: first moment m
    exp_avg_sq: Any  # tree like params: second moment v


@explained(NO_PARAMS)
def radam(
    lr: HParam = 1e-3,
    betas: tuple[HParam, HParam] = (0.9, 0.999),
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Optimizer[RAdamState]:
    """RAdam (arXiv 1908.03265, Algorithm 2): rectified Adam; rule and defaults of :class:`torch.optim.RAdam`.

    With weights ``W``, gradient ``g``, ``(b1, b2)`` = ``betas`` and t counting from 1::

        g <- g + weight_decay * W           or W <- W - lr * weight_decay * W with decoupled_weight_decay
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2^t / (1 - b2^t)
        where rho > 5:
            r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            W <- W - lr * r * (m / (1 - b1^t)) * sqrt(1 - b2^t) / (sqrt(v) + eps)
        elsewhere:
            W <- W - lr * (m / (1 - b1^t))

    Args:
        lr, betas, eps, weight_decay, maximize: as in :func:`adam`.
        decoupled_weight_decay: the decay acts on the weights instead of the gradient (not an hparam).

    Raises:
        ValueError: as :func:`adam`.

    ``rho`` is at most t, so the first five updates are never rectified. The paper's bound is 4; 5 is torch's. The rule
    jumps where ``rho`` passes 5. There a hypergradient is the derivative of the branch that is taken.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.radam(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.3000])
    """
    check_lr(lr)
    check_flag("decoupled_weight_decay", decoupled_weight_decay)
    default = to_tensors(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(w: Tensor, g: Tensor, s: Entries, h: Numbers, t: Any) -> Moved:
        lr, (b1, b2), decay = h["lr"], h["betas"], h["weight_decay"]
        w, g = (shrunk(w, lr, decay), g) if decoupled_weight_decay else (w, plus(g, decay, w))
        m, v = blend(b1, s["exp_avg"], g), blend(b2, s["exp_avg_sq"], g * g)
        scale = _rectified(b2, t, root(v) + h["eps"])
        return minus(w, lr / (1 - b1**t), m * scale), {"exp_avg": m, "exp_avg_sq": v}

    return by_rule(rule, RAdamState, default, maximize=maximize, entrywise=True, plain=True)


def _rectified(b2: Any, t: Any, bottom: Tensor) -> Any:
    """What the first moment is multiplied by: 1, or the rectified ``1 / bottom``."""
    unbiased = 1 - b2**t
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / unbiased
    long = rho > 5
    # Elsewhere the formula gets numbers at which its derivative is finite.
    rho, rho_inf, bottom = where(long, rho, 6.0), where(long, rho_inf, 6.0), where(long, bottom, 1.0)
    r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    return where(long, r * unbiased**0.5 / bottom, 1.0)
