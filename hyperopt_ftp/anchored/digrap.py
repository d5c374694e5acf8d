"""DiGraP as a pure function: the hypergradient of its strength in closed form, no autograd call.

``hyper(directed(sgd(lr), anchor, omega), by=adam(lr=omega_lr, eps=1e-16), over="omega")`` is the same optimizer by
nested differentiation; the tests hold the two to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import check_choice, explained
from ..hparams import to_tensors
from ..optimizers.adam import AdamState, adam
from ..types import HParam, Optimizer, PaperOrExact, Params
from .directed import component
from .ftp import GRADIENTS
from .rule import AnchoredState, Numbers, Rule, RuleState, Spec, anchored, dot

#: State of a tensor.
DIGRAP_SPECS = (
    Spec("slope", "weights"),  # lr p of the last step
    Spec("omega_step", "count"),
    Spec("omega", "scalar"),
    Spec("omega_exp_avg", "scalar"),
    Spec("omega_exp_avg_sq", "scalar"),
)


@explained(
    "digrap(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is DiGraP"
)
def digrap(
    base: Optimizer, anchor: Params, omega_lr: HParam = 1e-2, gradient: PaperOrExact = "paper"
) -> Optimizer[AnchoredState]:
    """Directional Gradient Projection with a learned strength for each tensor (arXiv 2502.15895, Algorithm 1).

    For each constrained tensor with anchor ``W0``, weights ``W``, raw gradient ``g``, ``d = W - W0`` and ``mu`` =
    ``omega_lr``::

        h     = lr' * <g, p'>                       lr, p of the PREVIOUS step; "exact": 0 where it did not project
        omega <- clamp(omega - mu * AdamDirection(h), 0, 1)
        p     = (<g, d> / ||d||^2) d
        g     <- g - omega * p      where <g, d> >= 0, else g

    ``h`` is the one-step hypergradient of an SGD step (``dW/domega = lr * p``), also for other bases. omega starts at
    0. The first h is 0, since there is no previous step, so omega can move from the second step on.

    Args:
        base: any optimizer with an ``lr``; it gets the projected gradient. Put :func:`scheduled` around the result.
        anchor: as in :func:`ftp`.
        omega_lr: learning rate of omega, >= 0; the hparam ``"omega_lr"``. 0 is the base.
        gradient: ``"paper"``: h is the derivative of the projection even if the previous step did not project, as in
            Algorithm 1. ``"exact"``: the derivative of the step.

    Raises:
        ValueError: an omega_lr that is negative or NaN, an unknown gradient, an anchor that does not fit (at ``init``),
            a base without lr.

    Differs from the paper: Algorithm 1 normalises h before Adam. Here Adam alone does it, with an eps of 1e-16.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.digrap(hft.sgd(lr=0.1), torch.zeros(2), omega_lr=0.1)
    >>> w = torch.tensor([1.0, 0.0]); state = opt.init(w)
    >>> for g in ([1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]):
    ...     w, state = opt.update(torch.tensor(g), state, w)
    >>> state.rule[""]["omega"]
    tensor(0.1603)
    """
    return anchored(base, anchor, digrap_rule(omega_lr, gradient))


def digrap_rule(omega_lr: HParam, gradient: PaperOrExact) -> Rule:
    check_choice("gradient", gradient, GRADIENTS)

    def before(g: Tensor, w: Tensor, w0: Tensor, state: RuleState, h: Numbers) -> tuple[Tensor, RuleState]:
        d = w - w0
        sums = {"last": dot(g, state["slope"]), "product": dot(g, d), "square": dot(d, d)}
        x = strengths(sums, state, h, gradient)
        slope, less = x.pop("along") * d, x.pop("less")
        return g - less * d, {**x, "slope": slope.to(w.dtype)}

    return Rule(to_tensors(omega_lr=omega_lr), before, specs=DIGRAP_SPECS, reads=("lr",))


def strengths(sums: RuleState, state: RuleState, h: Numbers, gradient: PaperOrExact) -> RuleState:
    """What a step makes of ``<g, lr' p'>``, ``<g, d>`` and ``||d||^2``.

    The new omega and its moments, and how many times d ``lr p`` is (``"along"``), and what the gradient loses
    (``"less"``).
    """
    omega_rule = adam(eps=1e-16)
    moments = AdamState(state["omega_step"], state["omega_exp_avg"], state["omega_exp_avg_sq"], ())
    numbers = {**omega_rule.hparams, "lr": h["omega_lr"]}
    omega, moments = omega_rule.update(sums["last"], moments, state["omega"], numbers)
    omega = omega.clamp(0, 1)
    ratio, back = component(sums["product"], sums["square"])
    along = h["lr"] * (ratio if gradient == "paper" else torch.where(back, ratio, 0.0))
    less = torch.where(back, omega, 0.0) * ratio
    new = {"omega_step": moments.step, "omega": omega}
    new |= {"omega_exp_avg": moments.exp_avg, "omega_exp_avg_sq": moments.exp_avg_sq}
    return {**new, "along": along, "less": less}
