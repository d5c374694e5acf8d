"""Fast Trainable Projection as a pure function: the radius gradient in closed form, no autograd call.

``hyper(projected(base, anchor), by=damped(adam(lr=radius_lr), kappa), over="radius")`` is the same optimizer by nested
differentiation; the tests hold the two to each other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .. import tree
from ..calls import check_choice, explained
from ..hparams import Domain, check_number, to_tensors
from ..optimizers.adam import AdamState, adam
from ..optimizers.damping import damped
from ..optimizers.leafwise import no_steps
from ..types import HParam, Norm, Optimizer, PaperOrExact, Params
from .projections import FLOOR, check_norm, clip_radius, largest, per_row, rescaled, row_norm
from .rule import Layout, Numbers, Rule, RuleState, Spec, anchored

GRADIENTS: tuple[str, ...] = get_args(PaperOrExact)

_START = Domain(0.0, math.inf, open_high=True)
#: More is no float32, and leaves a first step to the base just as well.
_LARGEST = torch.finfo(torch.float32).max

#: State of a tensor, in the order of the columns that kernels take.
FTP_SPECS = (
    Spec("deviation", "weights"),  # c, unprojected
    Spec("row_norm", "rows", FLOOR),  # n
    Spec("radius", "scalar", FLOOR),  # gamma
    Spec("radius_exp_avg", "scalar"),
    Spec("radius_exp_avg_sq", "scalar"),
    Spec("radius_step", "count"),
)


class FTPState(NamedTuple):
    """State of :func:`ftp`; the dicts are by path of the constrained tensors."""

    base: Any
    radius: dict[str, Tensor]  # shape (): gamma
    radius_opt: Any  # state of the radius optimizer
    deviation: dict[str, Tensor]  # shape of the weights: c, unprojected
    norms: dict[str, Tensor]  # shape (rows,): n


@explained(
    "ftp(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "what the anchor leaves out moves freely; the class for parameters is FTPAdamW"
)
def ftp(
    base: Optimizer,
    anchor: Params,
    norm: Norm = "mars",
    kappa: HParam = 1.0,
    radius_lr: HParam = 1e-2,
    gradient: PaperOrExact = "paper",
    *,
    radius_start: float | None = None,
) -> Optimizer[FTPState]:
    """Fast Trainable Projection (arXiv 2310.19182, Algorithm 1) around any optimizer.

    For each constrained tensor with anchor ``W0``, weights ``W``, raw gradient ``g`` at W, the displacement ``d`` of
    ``base``, radius ``gamma``, and ``mu`` = ``radius_lr``::

        h     = sum_i <g_i, c_i> / n_i           c, n of the PREVIOUS step; "exact": over rows with gamma <= n_i
        h     <- kappa * h where h > 0
        gamma <- max(gamma - mu * AdamDirection(h), 1e-8)
        c     <- (W - d) - W0,   n_i <- sum_j |c_ij| + 1e-8
        gamma <- min(gamma, max_i n_i)           does not change Adam's moments
        W     <- W0 + min(gamma / n_i, 1) * c_i

    Adam on gamma has betas (0.9, 0.999) and eps 1e-8. The first h is 0, since there is no previous step. So gamma first
    moves at the second step, by 0.744 mu (bias exponent 2).

    Args:
        base: any optimizer, except schedule-free ones, and those with ``maximize=True`` (negate the loss). It gets the
            raw gradient; only its displacement is projected.
        anchor: pytree like the parameters, or a part of it. A tensor that is absent is unconstrained.
        norm: ``"mars"`` (L1 norm of each row, dim 0) or ``"l2"`` (norm of the whole tensor). 0-d and 1-D tensors are
            one row.
        kappa: in [0, 1]; see :func:`damped`. With 0 a radius shrinks only by the clip.
        radius_lr: learning rate of the radius, in units of row norm. A radius grows by about radius_lr a step, whatever
            ``lr`` is, so it needs n / radius_lr steps to reach a row norm n.
        gradient: ``"paper"``: all rows contribute (the authors' code). ``"exact"``: only clipped rows, the true
            derivative of the step.
        radius_start: the first radius of each tensor, finite, >= 0 (not an hparam), if it is larger than the default.
            ``None``: the largest row norm of ``params - anchor`` at the start, at least 1e-8. 1e-8 or less: always
            1e-8.

    Returns:
        An optimizer with hparams ``{**base.hparams, "radius_lr", "kappa"}``. 16-bit weights are computed in float32,
        with ``c`` as their master copy: ``W0 + s c`` if that rounds to the stored W, else the stored W.

    Raises:
        ValueError: a number outside its domain, an unknown norm or gradient, an anchor that does not fit (at ``init``).

    Differs from the paper: the authors start every radius at 1e-8, which resets weights that start off the anchor to
    it. ``radius_start=1e-8`` does the same.

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"w": torch.zeros(1, 2)}
    >>> opt = hft.ftp(hft.sgd(lr=1.0), anchor=w0, radius_lr=0.1)
    >>> params, state = w0, opt.init(w0)
    >>> for _ in range(3):
    ...     params, state = opt.update({"w": torch.tensor([[-1.0, 0.0]])}, state, params)
    >>> state.radius["w"], params["w"]
    (tensor(0.1603), tensor([[0.1603, 0.0000]]))
    """
    return anchored(
        base, anchor, ftp_rule(radius_lr, kappa, norm, gradient, radius_start), Layout(FTPState, _pack, _unpack, _apart)
    )


def _pack(base: Any, held: dict[str, RuleState], apart: bool) -> FTPState:
    columns = {spec.name: {name: state[spec.name] for name, state in held.items()} for spec in FTP_SPECS}
    counts = columns["radius_step"]
    step = counts if apart else next(iter(counts.values()), no_steps())
    radius_opt = AdamState(step, columns["radius_exp_avg"], columns["radius_exp_avg_sq"], ())
    return FTPState(base, columns["radius"], radius_opt, columns["deviation"], columns["row_norm"])


def _unpack(state: FTPState) -> tuple[Any, dict[str, RuleState]]:
    step, m, v, _ = state.radius_opt
    counts = step if isinstance(step, dict) else dict.fromkeys(state.radius, step)
    columns = (state.deviation, state.norms, state.radius, m, v, counts)
    named: Any = list(zip([spec.name for spec in FTP_SPECS], columns, strict=True))
    return state.base, {path: {name: column[path] for name, column in named} for path in state.radius}


def _apart(state: FTPState) -> bool:
    return isinstance(state.radius_opt.step, dict)


def ftp_rule(
    radius_lr: HParam, kappa: HParam, norm: Norm, gradient: PaperOrExact, radius_start: float | None = None
) -> Rule:
    check_norm(norm)
    check_choice("gradient", gradient, GRADIENTS)
    if isinstance(radius_start, Tensor) and radius_start.requires_grad:
        raise ValueError("radius_start is no hparam, so it has no derivative; give it detached")
    if radius_start is not None:
        check_number("radius_start", radius_start, _START)
    first = FLOOR if radius_start is None else min(max(FLOOR, float(radius_start)), _LARGEST)
    specs = tuple(spec._replace(fill=first) if spec.name == "radius" else spec for spec in FTP_SPECS)
    radius_rule = damped(adam())

    def before(g: Tensor, w: Tensor, w0: Tensor, state: RuleState, h: Numbers) -> tuple[Tensor, RuleState]:
        c, n, radius = state["deviation"], state["row_norm"], state["radius"]
        slope = radius_gradient(g, c, n, radius, gradient)
        moments = AdamState(state["radius_step"], state["radius_exp_avg"], state["radius_exp_avg_sq"], ())
        numbers = {**radius_rule.hparams, "lr": h["radius_lr"], "kappa": h["kappa"]}
        radius, moments = radius_rule.update(slope, moments, radius, numbers)
        new = {"radius": radius.clamp(min=FLOOR), "radius_step": moments.step}
        return g, {**state, **new, "radius_exp_avg": moments.exp_avg, "radius_exp_avg_sq": moments.exp_avg_sq}

    def master(stored: Tensor, w0: Tensor, state: RuleState) -> Tensor:
        # c keeps what 16 bits cannot: W0 + s c where that rounds to the stored W, else the stored W, which somebody
        # changed.
        wide = tree.working(stored)
        if wide.dtype == stored.dtype:
            return stored
        kept = rescaled(w0, state["deviation"], state["radius"], state["row_norm"])
        return torch.where(kept.to(stored.dtype) == stored, kept, wide)

    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        c = moved - w0
        n = row_norm(c, norm)
        radius = clip_radius(state["radius"], n)
        return rescaled(w0, c, radius, n), {**state, "deviation": c, "row_norm": n, "radius": radius}

    def off(c: Tensor) -> RuleState:
        return {"radius": largest(row_norm(c, norm)).clamp(min=first)}

    own = to_tensors(radius_lr=radius_lr, kappa=kappa)
    back = radius_start is not None and first == FLOOR  # the authors' start, also off the anchor
    return Rule(own, before, after, specs, norm, None if back else off, master, keeps=())


def radius_gradient(
    grad: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor, gradient: PaperOrExact = "paper"
) -> Tensor:
    """Derivative of the loss in the radius of the step that made the weights, in closed form.

    ``W = W0 + min(radius / n_i, 1) * c_i`` gives ``h = sum_i <g_i, c_i> / n_i`` over the clipped rows
    (``radius <= n_i``; a tie counts as clipped). ``"paper"`` sums over all rows, as the authors' code does.

    Args:
        grad: gradient g at the projected weights.
        deviation: c of the step that made them, same shape.
        norms: row norms n of c, shape (rows,).
        radius: radius of that step, 0-d.
        gradient: ``"paper"`` or ``"exact"``.

    Returns:
        0-d tensor.

    Raises:
        ValueError: an unknown ``gradient``.

    >>> import torch
    >>> from hyperopt_ftp.anchored import radius_gradient
    >>> c, n = torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([2.0, 0.5])
    >>> radius_gradient(torch.ones(2, 2), c, n, torch.tensor(1.0), "exact")
    tensor(1.)
    """
    check_choice("gradient", gradient, GRADIENTS)
    weight = 1 / norms
    if gradient == "exact":
        weight = torch.where(radius <= norms, weight, 0.0)
    return (per_row(weight, deviation) * (grad * deviation)).sum()
