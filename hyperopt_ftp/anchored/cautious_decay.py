"""Cautious decay toward the anchor: only where the step itself goes that way."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer, Params
from .rule import AnchoredState, Numbers, Rule, RuleState, anchored


@explained(
    "cautious_decay(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is CautiousDecay"
)
def cautious_decay(base: Optimizer, anchor: Params, strength: HParam = 1e-2) -> Optimizer[AnchoredState]:
    """Cautious weight decay (arXiv 2510.12402, Algorithm 1) toward an anchor instead of toward zero.

    With the displacement ``u`` of ``base`` (learning rate included), weights ``W`` and anchor ``W0``, entry by entry::

        W <- (W - u) - lr * strength * 1[u * (W - W0) >= 0] * (W - W0)

    An entry decays only if the base's own step moves it toward the anchor, or does not move it.

    Args:
        base: any optimizer with an ``lr``, except schedule-free ones, and with weight decay 0 (decay would be part of
            ``u``). Put :func:`scheduled` around the result, not inside.
        anchor: as in :func:`ftp`. Zeros are the paper's decay.
        strength: number, 0-d tensor, or dict by path of them, >= 0; the hparam ``"strength"``. 0 is the base. With
            ``lr * strength = 1``, entries that decay start each step at the anchor.

    Raises:
        ValueError: a strength that is negative or NaN, an anchor that does not fit (at ``init``), a base without lr.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.cautious_decay(hft.sgd(lr=0.1), torch.zeros(2), strength=1.0)
    >>> w = torch.ones(2)
    >>> opt.update(torch.tensor([1.0, -1.0]), opt.init(w), w)[0]
    tensor([0.8000, 1.1000])
    """
    return anchored(base, anchor, cautious_decay_rule(strength))


def cautious_decay_rule(strength: HParam) -> Rule:
    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        d = w - w0
        return moved - h["lr"] * h["strength"] * torch.where((w - moved) * d >= 0, d, 0.0), state

    return Rule(to_tensors(strength=strength), after=after, reads=("lr",), keeps=("w",))
