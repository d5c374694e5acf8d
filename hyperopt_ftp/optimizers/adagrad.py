"""Adagrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import explained
from ..hparams import complete, domains_of, to_tensors
from ..types import HParam, Optimizer
from .leafwise import NO_PARAMS, check_lr, check_params, check_state, for_each, leafwise, no_steps, safe_sqrt

__all__ = ["AdagradState", "adagrad"]


class AdagradState(NamedTuple):
    """State of :func:`adagrad`."""

    step: Tensor  # shape (), int64: updates done
    sum: Any  # tree like params: accumulated g^2


@explained(NO_PARAMS)
def adagrad(
    lr: HParam = 1e-2,
    lr_decay: HParam = 0.0,
    weight_decay: HParam = 0.0,
    initial_accumulator_value: HParam = 0.0,
    eps: HParam = 1e-10,
) -> Optimizer[AdagradState]:
    """Adagrad (Duchi et al., 2011); rule and defaults of :class:`torch.optim.Adagrad`.

    With weights ``W``, gradient ``g``, and t counting from 1; ``s`` starts at ``initial_accumulator_value``::

        g <- g + weight_decay * W
        s <- s + g^2
        W <- W - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        lr, lr_decay, weight_decay, initial_accumulator_value, eps: numbers, 0-d tensors, or trees of them.
            ``initial_accumulator_value`` is read by ``init`` only.

    Raises:
        ValueError: a number below 0, infinite or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.adagrad(lr=0.1)
    >>> w, state = opt.update(torch.tensor([3.0]), opt.init(torch.zeros(1)), torch.zeros(1))
    >>> w
    tensor([-0.1000])
    """
    check_lr(lr)
    default = to_tensors(
        lr=lr, lr_decay=lr_decay, weight_decay=weight_decay,
        initial_accumulator_value=initial_accumulator_value, eps=eps,
    )  # fmt: skip

    def init(params: Any, hparams: Any = None) -> AdagradState:
        check_params(params)
        first = for_each(complete(hparams, default)["initial_accumulator_value"], params)
        values, rebuild = tree.flatten(params)
        sums = [(torch.zeros_like(w) + x).to(w.dtype) for w, x in zip(map(tree.working, values), first, strict=True)]
        return AdagradState(no_steps(), rebuild(sums))

    def update(grads: Any, state: AdagradState, params: Any, hparams: Any = None) -> tuple[Any, AdagradState]:
        check_state(AdagradState, state)
        h = complete(hparams, default)

        def rule(w: Tensor, g: Tensor, s: Tensor, lr: Tensor, decay_lr: Tensor, decay: Tensor, eps: Tensor) -> tuple:
            g = g + decay * w
            s = s + g * g
            return w - lr / (1 + state.step * decay_lr) * g / (safe_sqrt(s) + eps), s

        hs = (h["lr"], h["lr_decay"], h["weight_decay"], h["eps"])
        params, s = leafwise(rule, params, grads, (state.sum,), hs)
        return params, AdagradState(state.step + 1, s)

    return Optimizer(init, update, default, domains=domains_of(default))
