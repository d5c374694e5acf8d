"""An optimizer whose weights stay in a ball around an anchor, with the radius as a hyperparameter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..hparams import as_tensor, check_choice, check_number, domains_of
from ..projections import NORMS, clip_radius, largest, per_row, rescaled, row_norm
from ..types import Optimizer
from .combinators import check_new_names, check_zero_d, extended
from .leafwise import check_params, check_state

__all__ = ["ProjectedState", "anchors", "by_name", "check_anchor", "first_radius", "numbers", "projected"]


class ProjectedState(NamedTuple):
    """State of :func:`projected`."""

    base: Any
    norms: Any  # by path of the constrained tensors: row norms n of the unprojected deviation, shape (rows,)


def projected(
    base: Optimizer, anchor: Any, norm: str = "mars", radius: Any = None, *, bounded: bool = True
) -> Optimizer:
    """Project the weights after each step of ``base`` onto balls around ``anchor``.

    With ``d`` the displacement of ``base`` and ``W0`` the anchor, for each constrained tensor::

        c = (W - d) - W0,   n_i = row_norm(c)_i,   W <- W0 + min(radius / n_i, 1) * c_i

    With a fixed radius this is MARS-SP (arXiv 2002.08253) or L2 projection; with a radius tuned by one-step
    hypergradients (``hyper(projected(...), over="radius")``) it is FTP (arXiv 2310.19182).

    Args:
        base: any optimizer.
        anchor: pytree like the parameters, or a part of it: tensors that are absent (or ``None``) are unconstrained.
        norm: ``"mars"`` (each row in its L1 ball) or ``"l2"`` (the whole tensor in its Frobenius ball).
        radius: ``None`` (infinity), a number, or a dict by path of numbers or 0-d tensors, >= 0, in units of row norm.
            The hparam ``"radius"`` is a dict by path of 0-d tensors. With ``None``, a tuner starts from
            ``start``: the largest row norm of ``params - anchor``.
        bounded: ``False`` leaves out the min (``W0 + (radius / n_i) c_i``): the map through which FTP's "paper"
            hypergradient is pulled back. Not a projection.

    Raises:
        ValueError: an unknown norm, a radius that is negative or NaN, an anchor whose entries are not parameters or
            have another shape (at ``init``).

    >>> import torch, hyperopt_ftp as hft
    >>> w0 = {"w": torch.zeros(1, 2)}
    >>> opt = hft.projected(hft.sgd(lr=1.0), anchor=w0, radius=1.0)
    >>> params, _ = opt.update({"w": torch.tensor([[-3.0, 1.0]])}, opt.init(w0), w0)
    >>> params
    {'w': tensor([[ 0.7500, -0.2500]])}
    """
    check_choice("norm", norm, NORMS)
    fixed = anchors(anchor)
    own = {"radius": _radii(radius, fixed)}
    check_new_names(base, own)
    hparams = {**base.hparams, **own}

    def init(params: Any, hparams: Any = None) -> ProjectedState:
        check_params(params)
        check_anchor(fixed, params)
        constrained = tree.pick(params, fixed)
        at_anchor = {name: row_norm(torch.zeros_like(tree.working(w)), norm) for name, w in constrained.items()}
        return ProjectedState(base.init(params, extended(hparams, base, own)[0]), at_anchor)

    def update(grads: Any, state: ProjectedState, params: Any, hparams: Any = None) -> tuple[Any, ProjectedState]:
        check_state(ProjectedState, state)
        bases, owns = extended(hparams, base, own)
        radii = numbers("radius", owns["radius"], fixed)
        before = tree.pick(params, fixed)
        wide = tree.put(params, {name: tree.working(w) for name, w in before.items()})
        moved, inner = base.update(grads, state.base, wide, bases)
        new, norms = {}, {}
        for name, w in tree.pick(moved, fixed).items():
            w0 = fixed[name].to(w.dtype)
            gamma, c = radii[name], w - w0
            n = norms[name] = row_norm(c, norm)
            result = rescaled(w0, c, gamma, n) if bounded else w0 + per_row((gamma / n).to(c.dtype), c) * c
            new[name] = result.to(before[name].dtype)
        return tree.put(moved, new), ProjectedState(inner, norms)

    def start(params: Any, hparams: Any) -> Any:
        bases, owns = extended(hparams, base, own)
        bases = base.start(params, bases) if base.start else bases
        if radius is None:
            owns = {"radius": {n: first_radius(w, fixed[n], norm) for n, w in tree.pick(params, fixed).items()}}
        return {**bases, **owns}

    def settle(hparams: Any, new_state: ProjectedState) -> Any:
        bases, owns = extended(hparams, base, own)
        bases = base.settle(bases, new_state.base) if base.settle else bases
        radii = numbers("radius", owns["radius"], fixed)
        return {**bases, "radius": {name: clip_radius(radii[name], n) for name, n in new_state.norms.items()}}

    return Optimizer(init, update, hparams, start, settle, {**base.domains, **domains_of(own)}, base.tunes)


def anchors(anchor: Any) -> dict[str, Tensor]:
    """The constrained tensors' anchors by path."""
    fixed = tree.by_path(anchor)
    if anchor is None:
        raise TypeError("anchor must be the weights to stay near, a tensor or a tree of tensors, got None")
    for name, value in fixed.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"anchor must hold floating-point tensors, but its entry {name!r} is {what}")
    return fixed


def check_anchor(fixed: dict[str, Tensor], params: Any) -> None:
    given = tree.by_path(params)
    extra = [name for name in fixed if name not in given]
    if extra:
        raise ValueError(f"anchor has entries {extra} that are not parameters; the parameters are {list(given)}")
    for name, w0 in fixed.items():
        if w0.shape != given[name].shape:
            raise ValueError(
                f"anchor entry {name!r} has shape {tuple(w0.shape)}, its parameter {tuple(given[name].shape)}"
            )


def first_radius(weights: Tensor, anchor: Tensor, norm: str) -> Tensor:
    """Largest row norm of ``weights - anchor``: 1e-8 at the anchor, and no smaller than the run's own start off it."""
    w = tree.working(weights)
    return largest(row_norm(w - anchor.to(w.dtype), norm))


def numbers(key: str, value: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hparam ``key`` of each constrained tensor, 0-d."""
    found = by_name(key, value, fixed)
    for x in found.values():
        check_zero_d(key, x)
    return found


def by_name(key: str, value: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hparam ``key`` of each constrained tensor: one for all, or a tree that has one for each."""
    if isinstance(value, Tensor):
        return dict.fromkeys(fixed, value)
    given = tree.by_path(value)
    missing = [name for name in fixed if name not in given]
    if missing:
        raise ValueError(f"{key} has no entry for {missing[0]!r}, only for {list(given)}")
    return {name: given[name] for name in fixed}


def _radii(radius: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    if radius is None:
        radius = math.inf
    given = tree.by_path(radius) if isinstance(radius, dict) else dict.fromkeys(fixed, radius)
    if given.keys() != fixed.keys():
        raise ValueError(f"radius must have the names of the anchor {list(fixed)}, got {list(given)}")
    for value in given.values():
        check_number("radius", value)
    return {name: as_tensor(value) for name, value in given.items()}
