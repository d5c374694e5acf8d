"""Fast Trainable Projection as a pure function: the radius gradient in closed form, no autograd call.

``hyper(projected(base, anchor), by=anneal(adam(lr=radius_lr), kappa), over="radius")`` is the same optimizer by nested
differentiation; the tests hold the two to each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tree
from .hparams import check_choice, complete, domains_of, to_tensors
from .optimizers.adam import adam
from .optimizers.combinators import anneal, check_new_names
from .optimizers.leafwise import check_grads, check_params, check_state
from .optimizers.projected import anchors, check_anchor, first_radius
from .projections import FLOOR, NORMS, clip_radius, per_row, rescaled, row_norm
from .types import Optimizer

__all__ = ["GRADIENTS", "FTPState", "ftp", "master", "radius_gradient"]

GRADIENTS = ("paper", "exact")


class FTPState(NamedTuple):
    """State of :func:`ftp`; the dicts are by path of the constrained tensors."""

    base: Any
    radius: dict[str, Tensor]  # shape (): gamma
    radius_opt: Any  # state of the radius optimizer
    deviation: dict[str, Tensor]  # shape of the weights: c, unprojected
    norms: dict[str, Tensor]  # shape (rows,): n


def ftp(
    base: Optimizer,
    anchor: Any,
    norm: str = "mars",
    kappa: Any = 1.0,
    radius_lr: Any = 1e-2,
    gradient: str = "paper",
) -> Optimizer:
    """Fast Trainable Projection (arXiv 2310.19182, Algorithm 1) around any optimizer.

    For each constrained tensor with anchor ``W0``, weights ``W``, raw gradient ``g`` at W, the displacement ``d`` of
    ``base``, and ``mu`` = ``radius_lr``::

        h     = sum_i <g_i, c_i> / n_i           c, n of the PREVIOUS step; "exact": over rows with gamma <= n_i
        h     <- kappa * h where h > 0
        gamma <- max(gamma - mu * AdamDirection(h), 1e-8)
        c     <- (W - d) - W0,   n_i <- sum_j |c_ij| + 1e-8
        gamma <- min(gamma, max_i n_i)           does not touch Adam's moments
        W     <- W0 + min(gamma / n_i, 1) * c_i

    Adam on gamma has betas (0.9, 0.999) and eps 1e-8. Its first gradient is 0 (there is no previous step), so its
    first move comes at the second step, with bias exponent 2: 0.744 mu.

    Args:
        base: any optimizer; it sees the raw gradient, and only its displacement is projected.
        anchor: pytree like the parameters, or a part of it: a tensor whose name is absent is unconstrained.
        norm: ``"mars"`` (rows in L1) or ``"l2"`` (the whole tensor). 0-d and 1-D tensors are one row.
        kappa: in [0, 1]; see :func:`anneal`. 1 keeps the hypergradient, 0 lets a radius shrink only by the clip.
        radius_lr: step of the radius, in units of row norm. A radius grows by about radius_lr a step whatever
            the learning rate is, so training warms up for max_i n_i / radius_lr steps.
        gradient: ``"paper"``: all rows contribute (the authors' code). ``"exact"``: only clipped rows, the true
            derivative of the step.

    Returns:
        An optimizer with hparams ``{**base.hparams, "radius_lr", "kappa"}``. The radius starts at 1e-8, or at the
        largest row norm of ``params - anchor`` when training starts elsewhere. 16-bit weights are computed in float32,
        with ``c`` as their master copy: ``W0 + s c`` where that rounds to the stored W, else the stored W.

    Raises:
        ValueError: a number outside its domain, an unknown norm or gradient, an anchor that does not fit (at ``init``).

    Deviation: the authors start every radius at 1e-8, which throws a run that starts off the anchor back onto it.

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"w": torch.zeros(1, 2)}
    >>> opt = hft.ftp(hft.sgd(lr=1.0), anchor=w0, radius_lr=0.1)
    >>> params, state = w0, opt.init(w0)
    >>> for _ in range(3):
    ...     params, state = opt.update({"w": torch.tensor([[-1.0, 0.0]])}, state, params)
    >>> state.radius["w"], params["w"]
    (tensor(0.1603), tensor([[0.1603, 0.0000]]))
    """
    check_choice("norm", norm, NORMS)
    check_choice("gradient", gradient, GRADIENTS)
    fixed = anchors(anchor)
    own = to_tensors(radius_lr=radius_lr, kappa=kappa)
    check_new_names(base, own)
    default = {**base.hparams, **own}
    radius_rule = anneal(adam())

    def split(hparams: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        h = complete(hparams, default)
        bases = {name: h[name] for name in base.hparams}
        return bases, {**radius_rule.hparams, "lr": h["radius_lr"], "kappa": h["kappa"]}

    def init(params: Any, hparams: Any = None) -> FTPState:
        check_params(params)
        check_anchor(fixed, params)
        bases, radius_h = split(hparams)
        constrained = tree.pick(params, fixed)
        radius = {name: first_radius(w, fixed[name], norm) for name, w in constrained.items()}
        # c = 0: the first hypergradient is 0.
        c = {name: torch.zeros_like(tree.working(w)) for name, w in constrained.items()}
        norms = {name: row_norm(x, norm) for name, x in c.items()}
        return FTPState(base.init(params, bases), radius, radius_rule.init(radius, radius_h), c, norms)

    def update(grads: Any, state: FTPState, params: Any, hparams: Any = None) -> tuple[Any, FTPState]:
        check_state(FTPState, state)
        check_grads(grads, params)
        bases, radius_h = split(hparams)
        stored = tree.pick(params, fixed)
        h = {
            name: radius_gradient(
                g.to(state.deviation[name].dtype),
                state.deviation[name],
                state.norms[name],
                state.radius[name],
                gradient,
            )
            for name, g in tree.pick(grads, fixed).items()
        }
        radius, radius_opt = radius_rule.update(h, state.radius_opt, state.radius, radius_h)

        wide = {
            name: master(w, fixed[name], state.deviation[name], state.norms[name], state.radius[name])
            for name, w in stored.items()
        }
        moved, inner = base.update(grads, state.base, tree.put(params, wide), bases)

        new, deviation, norms, radii = {}, {}, {}, {}
        for name, w in tree.pick(moved, fixed).items():
            w0 = fixed[name].to(w.dtype)
            c = w - w0
            n = row_norm(c, norm)
            gamma = clip_radius(radius[name].clamp(min=FLOOR), n)
            new[name] = rescaled(w0, c, gamma, n).to(stored[name].dtype)
            deviation[name], norms[name], radii[name] = c, n, gamma
        return tree.put(moved, new), FTPState(inner, radii, radius_opt, deviation, norms)

    domains = {**base.domains, **domains_of(own)}
    return Optimizer(init, update, default, domains=domains, tunes=base.tunes)


def radius_gradient(grad: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor, gradient: str = "paper") -> Tensor:
    """Derivative of the loss with respect to the radius of the step that made the weights, in closed form.

    ``W = W0 + min(radius / n_i, 1) * c_i`` gives ``h = sum_i <g_i, c_i> / n_i`` over the clipped rows
    (``radius <= n_i``; a tie counts as clipped). ``"paper"`` sums over all rows, as the authors' code does.

    Args:
        grad: gradient g at the projected weights.
        deviation: c of the step that made them, same shape.
        norms: its row norms n, shape (rows,).
        radius: its radius, 0-d.
        gradient: ``"paper"`` or ``"exact"``.

    Returns:
        0-d tensor.

    >>> import torch
    >>> from hyperopt_ftp.ftp import radius_gradient
    >>> c, n = torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([2.0, 0.5])
    >>> radius_gradient(torch.ones(2, 2), c, n, torch.tensor(1.0), "exact")
    tensor(1.)
    """
    weight = 1 / norms
    if gradient == "exact":
        weight = torch.where(radius <= norms, weight, 0.0)
    return (per_row(weight, deviation) * (grad * deviation)).sum()


def master(stored: Tensor, anchor: Tensor, deviation: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    """Weights before a step, in working precision.

    c keeps what 16 bits cannot: W0 + s c where that rounds to the stored W, else the stored W, which somebody changed.
    """
    wide = tree.working(stored)
    if wide.dtype == stored.dtype:
        return stored
    kept = rescaled(anchor.to(wide.dtype), deviation, radius, norms)
    return torch.where(kept.to(stored.dtype) == stored, kept, wide)
