"""L2-SP: weight decay toward the anchor instead of toward zero."""

from __future__ import annotations

from torch import Tensor

from ..calls import check_flag, explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer, Params
from .rule import AnchoredState, Numbers, Rule, RuleState, anchored


@explained(
    "l2sp(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is L2SP"
)
def l2sp(base: Optimizer, anchor: Params, strength: HParam = 1e-2, decoupled: bool = False) -> Optimizer[AnchoredState]:
    """L2-SP (arXiv 1802.01483, section 3.1): the penalty ``strength / 2 * ||W - W0||^2`` on each constrained tensor.

    With weights ``W``, anchor ``W0``, gradient ``g`` and the displacement ``d`` of ``base``::

        g <- g + strength * (W - W0)                       coupled: the base gets the penalty's gradient
        W <- (W - d) - lr * strength * (W - W0)            decoupled, as in AdamW (arXiv 1711.05101)

    Args:
        base: any optimizer. If decoupled, one with an ``lr``, except schedule-free ones, with :func:`scheduled` around
            the result, not inside.
        anchor: as in :func:`ftp`.
        strength: number, 0-d tensor, or dict by path of them, >= 0; the hparam ``"strength"``. 0 is the base. If
            decoupled, ``lr * strength = 1`` makes each step start at the anchor.
        decoupled: move the weights instead of changing the gradient.

    Raises:
        ValueError: a strength that is negative or NaN, an anchor that does not fit (at ``init``); decoupled, a base
            without lr.
        TypeError: ``decoupled`` is not a bool.

    The paper's second penalty, plain L2 on the new head, is the base's ``weight_decay``. The paper has no decoupled
    form.

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"w": torch.zeros(2)}
    >>> opt = hft.l2sp(hft.sgd(lr=0.1), w0, strength=0.5)
    >>> params = {"w": torch.ones(2)}
    >>> opt.update({"w": torch.zeros(2)}, opt.init(params), params)[0]
    {'w': tensor([0.9500, 0.9500])}
    """
    return anchored(base, anchor, l2sp_rule(strength, decoupled))


def l2sp_rule(strength: HParam, decoupled: bool) -> Rule:
    check_flag("decoupled", decoupled)

    def before(g: Tensor, w: Tensor, w0: Tensor, state: RuleState, h: Numbers) -> tuple[Tensor, RuleState]:
        return g + h["strength"] * (w - w0), state

    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        return moved - h["lr"] * h["strength"] * (w - w0), state

    own = to_tensors(strength=strength)
    if decoupled:
        return Rule(own, after=after, reads=("lr",), keeps=("w",))
    return Rule(own, before=before, keeps=("w",))
