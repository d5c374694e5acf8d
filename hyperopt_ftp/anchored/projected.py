"""An optimizer whose weights stay in a ball around an anchor, with the radius as a hyperparameter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..calls import explained
from ..hparams import as_tensor, check_number
from ..types import HParam, Norm, Optimizer, Params
from .anchors import anchors, check_same_names
from .projections import FLOOR, check_norm, clip_radius, largest, per_row, rescaled, row_norm
from .rule import Layout, Numbers, Rule, RuleState, Spec, anchored


class ProjectedState(NamedTuple):
    """State of :func:`projected`."""

    base: Any
    norms: Any  # by path of the constrained tensors: row norms n of the unprojected deviation, shape (rows,)


@explained(
    "projected(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw(); "
    "the class around those of torch.optim is MARSSP"
)
def projected(
    base: Optimizer, anchor: Params, norm: Norm = "mars", radius: HParam | None = None, *, bounded: bool = True
) -> Optimizer[ProjectedState]:
    """Project the weights after each step of ``base`` onto balls around ``anchor``.

    With ``d`` the displacement of ``base`` and ``W0`` the anchor, for each constrained tensor::

        c = (W - d) - W0,   n_i = row_norm(c)_i,   W <- W0 + min(radius / n_i, 1) * c_i

    With a fixed radius this is MARS-SP (arXiv 2002.08253) or L2 projection. With a radius tuned by one-step
    hypergradients (``hyper(projected(...), over="radius")``) it is FTP (arXiv 2310.19182).

    Args:
        base: any optimizer, except schedule-free ones.
        anchor: as in :func:`ftp`; ``None`` for a tensor means absent, too.
        norm: ``"mars"`` (each row in its L1 ball) or ``"l2"`` (the whole tensor in its Frobenius ball).
        radius: ``None`` (infinity), a number, or a dict by path of numbers or 0-d tensors, >= 0, in units of row norm.
            The hparam ``"radius"`` is a dict by path of 0-d tensors. With ``None``, a tuner starts from the largest row
            norm of ``params - anchor``.
        bounded: ``False`` leaves out the min: ``W0 + (radius / n_i) c_i``, which is not a projection. FTP's "paper"
            hypergradient is the derivative of this map.

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
    return anchored(
        base, anchor, projected_rule(_radii(radius, anchors(anchor)), norm, bounded, starts=radius is None), _LAYOUT
    )


_LAYOUT = Layout(
    ProjectedState,
    lambda base, held, apart: ProjectedState(base, {name: state["row_norm"] for name, state in held.items()}),
    lambda state: (state.base, {name: {"row_norm": n} for name, n in state.norms.items()}),
)


def projected_rule(radius: Any, norm: Norm, bounded: bool = True, starts: bool = False) -> Rule:
    """The rule of :func:`projected`.

    Args:
        radius: 0-d tensor, or a dict of them by path.
        norm, bounded: as there.
        starts: whether a tuner's first radius is the largest row norm.
    """
    check_norm(norm)

    def after(
        moved: Tensor, w: Tensor, w0: Tensor, g: Tensor, state: RuleState, h: Numbers
    ) -> tuple[Tensor, RuleState]:
        gamma, c = h["radius"], moved - w0
        n = row_norm(c, norm)
        new = rescaled(w0, c, gamma, n) if bounded else w0 + per_row((gamma / n).to(c.dtype), c) * c
        return new, {"row_norm": n}

    def start(w: Tensor, w0: Tensor, h: Numbers) -> Numbers:
        # 1e-8 at the anchor, and no smaller than the run's own start off it.
        return {"radius": largest(row_norm(w - w0, norm))}

    def settle(h: Numbers, state: RuleState) -> Numbers:
        return {"radius": clip_radius(h["radius"], state["row_norm"])}

    specs = (Spec("row_norm", "rows", FLOOR),)
    starting = start if starts else None
    return Rule({"radius": radius}, None, after, specs, norm, start=starting, settle=settle, keeps=())


def _radii(radius: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    if radius is None:
        radius = math.inf
    given = tree.by_path(radius) if isinstance(radius, dict) else dict.fromkeys(fixed, radius)
    check_same_names("radius", given.keys(), fixed)
    for value in given.values():
        check_number("radius", value)
    return {name: as_tensor(value) for name, value in given.items()}
