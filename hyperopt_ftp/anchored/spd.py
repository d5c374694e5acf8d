"""Selective projection decay: layers in which descent leads back to the anchor are pulled there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..optimizers.arithmetic import safe_sqrt
from ..types import HParam, Optimizer, Params
from .rule import AnchoredState, Numbers, Rule, RuleState, anchored, dot


@explained(
    "spd(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is SPD"
)
def spd(base: Optimizer, anchor: Params, strength: HParam = 1.0) -> Optimizer[AnchoredState]:
    """Selective Projection Decay (arXiv 2411.01713, Algorithm 1) around any optimizer.

    For each constrained tensor with anchor ``W0``, weights ``W``, raw gradient ``g`` and ``V``, the weights after the
    base's step::

        r = max(0, (||V - W0|| - ||W - W0||) / ||V - W0||)         the deviation ratio
        W <- V - strength * r * (V - W0)     where <g, W - W0> > 0, else V

    ``<g, W - W0> > 0`` means that descent would move back toward the anchor. ``strength = 1`` then projects V onto the
    ball of the previous deviation. The learning rate does not enter.

    Args:
        base: any optimizer, except schedule-free ones.
        anchor: as in :func:`ftp`. Use zeros for adapters (LoRA).
        strength: the paper's lambda: number, 0-d tensor, or dict by path of them, >= 0; the hparam ``"strength"``. 0 is
            the base.

    Raises:
        ValueError: a strength that is negative or NaN, an anchor that does not fit (at ``init``).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.spd(hft.sgd(lr=1.0, momentum=0.9), torch.zeros(2))
    >>> w = torch.zeros(2); state = opt.init(w)
    >>> for g in (-1.0, 0.1):
    ...     w, state = opt.update(torch.tensor([g, 0.0]), state, w)
    >>> w  # momentum alone would have gone on to 1.8
    tensor([1., 0.])
    """
    return anchored(base, anchor, spd_rule(strength))


def spd_rule(strength: HParam) -> Rule:
    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        d, e = w - w0, moved - w0
        return moved - share(dot(g, d), dot(d, d), dot(e, e), h["strength"]) * e, state

    return Rule(to_tensors(strength=strength), after=after)


def share(slope: Tensor, before: Tensor, after: Tensor, strength: Tensor) -> Tensor:
    """The share of ``V - W0`` that goes, from ``<g, W - W0>``, ``||W - W0||^2`` and ``||V - W0||^2``."""
    far = safe_sqrt(after)
    ratio = (far - safe_sqrt(before)) / torch.where(far == 0, 1.0, far)
    return torch.where((slope > 0) & (ratio > 0), strength * ratio, 0.0)
