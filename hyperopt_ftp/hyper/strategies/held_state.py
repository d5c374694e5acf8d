"""Whether an optimizer's state may be held fixed at a fixed point, as :class:`~hyperopt_ftp.Implicit` does.

Let F be what a step still moves, and S the state after it. Holding the state is right if dS = M dF for some M: params
and hparams that keep F at 0 then do not change S. That is so if both enter through the gradient alone. Decoupled weight
decay moves the params without the momentum, so there is no such M.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ... import tree
from ...dtensors import whole
from ..core.leaves import is_narrow
from ..core.replay import Replay
from ..core.torch_private import values_of
from ..core.vjp import Vector, dot
from .fixed_point import System, at_point

#: Of a step's derivative: rounding of products in bfloat16 stays below.
LIMIT = 5e-3
#: The same, where a solution has to fit and not a mere factor. Over many steps momentum makes ten times as much of it.
SOLVED = LIMIT / 10


def is_checked(solver: str, params: Vector, state: Vector, replay: Replay) -> bool:
    """Whether :func:`mismatch` works: products are too inexact in 16 bits, and ``"identity"`` gives no solution."""
    return bool(state) and solver != "identity" and not (replay.autocasts or is_narrow(params))


def mismatch(
    system: System,
    point: list[Vector],
    direct: list[Vector],
    there: list[Vector],
    small: Tensor,
    needs_grad: list[bool],
) -> float:
    """How far dS is from M dF relative to dF, along one direction in which the state counts.

    Args:
        system: the linear system of F; values of the function after F are S.
        point: params, hparams, batches, state, constants.
        direct: ``v^T dF`` in each of these, for the v that gives the result.
        there: ``w^T dS`` in each of these, for the w that ``direct`` has for the state.
        small: limit for products that should be 0, for a number of 1.
        needs_grad: of the hparams and batches that a derivative is asked for.
    """
    size = _dot(direct[0], direct[0])
    size = torch.where(size == 0, 1.0, size)
    factor = _dot(there[0], direct[0]) / size  # M = factor for most: one momentum, one rate

    def rest(here: list[Vector]) -> float:
        found = 0.0
        rows = zip(*(column[1] + column[2] for column in (point, direct, here, there)), needs_grad, strict=True)
        for number, all_of, a, b, asked in rows:
            if asked and number.numel():
                off, unit = _dot([b - a], [b - a]).sqrt(), whole(tree.working(number).abs().amax())
                unit = torch.where(unit < 1, torch.minimum(unit, 1 - unit), 1.0)  # betas end at 1, rates at 0
                least = small.to(off) / torch.where(unit == 0, 1.0, unit)
                found = max(found, _worst(torch.where(off > least, off / _dot([all_of], [all_of]).sqrt(), 0.0)))
        return found

    scaled = [[factor.to(x) * x for x in column] for column in direct]
    off = [b - a for a, b in zip(scaled[0], there[0], strict=True)]
    found = max(_worst((_dot(off, off) / size).sqrt()), rest(scaled))
    if found <= LIMIT:
        return found
    del scaled, off
    direct[0], direct[3], there[3] = [], [], []  # of the size of params and state, and done with
    # M is another one, if there is any: y = M^T w solves y^T dF = w^T dS in the params, and then in all else.
    y = replace(system, damping=0.0, judge=lambda _: None).solve(there[0], *point)
    if not _worst(y.residual) < 1e3:  # there is none, or no number
        return found
    there[0] = []
    here = at_point(system, point)[1]([*y.x, *(torch.zeros_like(tree.working(x)) for x in point[3])])
    return found if rest(here) > SOLVED + _worst(y.residual) else 0.0


def _dot(x: Vector, y: Vector) -> Tensor:
    """A plain number, which scales plain tensors and DTensors."""
    return whole(dot(x, y))


def _worst(x: Tensor) -> float:
    return values_of(x).max().item()
