"""Recall: the task's share of a step grows, and the pull toward the anchor falls."""

from __future__ import annotations

import math

from torch import Tensor

from ..calls import explained
from ..hparams import DOMAINS, Domain, to_tensors
from ..types import HParam, Optimizer, Params
from .rule import AnchoredState, Numbers, Rule, RuleState, Spec, anchored

#: State of a tensor.
RECALL_SPECS = (Spec("recall_step", "count"),)

_DOMAINS = {
    "strength": DOMAINS["strength"],
    "rate": Domain(0.0, math.inf, open_high=True),
    "midpoint": Domain(-1e9, 1e9),  # finite: rate may be 0
}


@explained(
    "recall(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is Recall"
)
def recall(
    base: Optimizer, anchor: Params, strength: HParam = 1.0, rate: HParam = 0.1, midpoint: HParam = 250.0
) -> Optimizer[AnchoredState]:
    """RecAdam's recall (arXiv 2004.12651, Algorithm 1) around any optimizer.

    For each constrained tensor with anchor ``W0``, weights ``W``, the displacement ``u`` of ``base`` and ``t`` = number
    of this step, from 1::

        s = 1 / (1 + exp(-rate * (t - midpoint)))                  the task's share, from about 0 to 1
        W <- W - s * u - lr * (1 - s) * strength * (W - W0)

    Early steps pull the weights toward the anchor; late steps are those of ``base``.

    Args:
        base: any optimizer with an ``lr``, except schedule-free ones, and with weight decay 0. Put :func:`scheduled`
            around the result.
        anchor: as in :func:`ftp`.
        strength: the paper's gamma: number, 0-d tensor, or dict by path of them, >= 0. With ``lr * strength`` above 1
            the weights overshoot the anchor.
        rate: the paper's k, >= 0, per step.
        midpoint: the paper's t0, the step at which both have the same share.

    Returns:
        An optimizer with hparams ``{**base.hparams, "strength", "rate", "midpoint"}``.

    Raises:
        ValueError: a number outside its domain, an anchor that does not fit (at ``init``), a base without lr.

    Differs from the paper, whose base is Adam.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.recall(hft.sgd(lr=0.5), torch.zeros(1), strength=1.0, rate=1.0, midpoint=2.0)
    >>> w = torch.ones(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    >>> w
    tensor([1.0811])
    """
    return anchored(base, anchor, recall_rule(strength, rate, midpoint))


def recall_rule(strength: HParam, rate: HParam, midpoint: HParam) -> Rule:
    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        x = shares(state, h)
        return w + x["share"] * (moved - w) - x["pull"] * (w - w0), {"recall_step": x["recall_step"]}

    own = to_tensors(_DOMAINS, strength=strength, rate=rate, midpoint=midpoint)
    return Rule(own, after=after, specs=RECALL_SPECS, reads=("lr",), keeps=("w",), domains=_DOMAINS)


def shares(state: RuleState, h: Numbers) -> RuleState:
    step = state["recall_step"] + 1
    share = (h["rate"] * (step - h["midpoint"])).sigmoid()
    return {"recall_step": step, "share": share, "pull": h["lr"] * (1 - share) * h["strength"]}
