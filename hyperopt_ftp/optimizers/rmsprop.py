"""RMSprop."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..calls import explained
from ..hparams import complete, domains_of, to_tensors
from ..types import HParam, Optimizer
from .leafwise import NO_PARAMS, check_lr, check_params, check_state, leafwise, safe_sqrt, zeros

__all__ = ["RMSpropState", "rmsprop"]


class RMSpropState(NamedTuple):
    """State of :func:`rmsprop`."""

    square_avg: Any  # tree like params: v
    momentum_buffer: Any  # tree like params: b
    grad_avg: Any  # tree like params when centered, else ()


@explained(NO_PARAMS)
def rmsprop(
    lr: HParam = 1e-2,
    alpha: HParam = 0.99,
    eps: HParam = 1e-8,
    weight_decay: HParam = 0.0,
    momentum: HParam = 0.0,
    centered: bool = False,
) -> Optimizer[RMSpropState]:
    """RMSprop (Tieleman and Hinton, 2012); rule and defaults of :class:`torch.optim.RMSprop`.

    With weights ``W``, gradient ``g`` and ``mu`` = ``momentum``::

        g <- g + weight_decay * W
        v <- alpha * v + (1 - alpha) * g^2
        a <- alpha * a + (1 - alpha) * g            centered only; then v - a^2 stands for v below
        b <- mu * b + g / (sqrt(v) + eps)
        W <- W - lr * b

    Args:
        lr, alpha, eps, weight_decay, momentum: numbers, 0-d tensors, or trees of them (one for each parameter).
        centered: normalise by the estimated variance (structure, not an hparam).

    Raises:
        ValueError: a number outside its domain (``alpha`` in [0, 1], the others >= 0).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.rmsprop(lr=0.1, alpha=0.0)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)

    def init(params: Any, hparams: Any = None) -> RMSpropState:
        check_params(params)
        return RMSpropState(zeros(params), zeros(params), zeros(params) if centered else ())

    def update(grads: Any, state: RMSpropState, params: Any, hparams: Any = None) -> tuple[Any, RMSpropState]:
        check_state(RMSpropState, state)
        h = complete(hparams, default)

        def rule(w: Tensor, g: Tensor, v: Tensor, b: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            *average, lr, alpha, eps, decay, mu = rest
            g = g + decay * w
            v = alpha * v + (1 - alpha) * g * g
            average = [alpha * a + (1 - alpha) * g for a in average]
            variance = v - average[0] * average[0] if average else v
            b = mu * b + g / (safe_sqrt(variance) + eps)
            return w - lr * b, v, b, *average

        moments = (state.square_avg, state.momentum_buffer) + ((state.grad_avg,) if centered else ())
        hs = (h["lr"], h["alpha"], h["eps"], h["weight_decay"], h["momentum"])
        params, v, b, *average = leafwise(rule, params, grads, moments, hs)
        return params, RMSpropState(v, b, average[0] if centered else ())

    return Optimizer(init, update, default, domains=domains_of(default))
