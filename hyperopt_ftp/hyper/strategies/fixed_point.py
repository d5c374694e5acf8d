"""The linear system at a fixed point, and its solution as a function that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.torch_private import under_transform, unwrap_dead, values_of
from ..core.vjp import Vector, jvp, vjp
from .solvers import SOLVERS, Solved, diverges, norm, ratio, tolerance_of


@dataclass(frozen=True)  # a NamedTuple would be a tree, which torch takes apart
class System:
    """``(dF/dp + damping I)^T x = b`` at a point ``(p, *theta)``, and how it is solved."""

    #: F(p, *theta), all of them lists of tensors, the last of constants; values that follow F do not count here.
    function: Callable[..., Vector]
    solver: str
    iterations: int
    tolerance: float | None
    damping: float
    judge: Callable[[Solved], None]  # is told what was found
    transposed: bool = False  # dF/dp itself
    counts: tuple[int, ...] = ()  # of tensors: of b, of each column of the point, and of its constants

    def solve(self, b: Vector, p: Vector, *theta: Vector) -> Solved:
        """At most ``iterations`` products; under a transform, which hides the residual, all of them."""
        size = norm(b)
        if not bool(values_of(size).isfinite().all()):
            return Solved([u * torch.nan for u in b], 0, size)  # of no use to anybody: nothing to judge
        small = tolerance_of(size, self.tolerance)

        def done(residual: Tensor) -> bool:
            if under_transform():
                return False
            if not bool(residual < 1e3):
                raise diverges(self.solver, residual.item())
            return bool(residual <= small)

        product = self.product(p, *theta)
        found = SOLVERS[self.solver](product, b, self.iterations, lambda r: ratio(norm(r), size), done)
        self.judge(found)
        return found

    def product(self, p: Vector, *theta: Vector) -> Callable[[Vector], Vector]:
        def at(q: Vector) -> Vector:
            return self.function(q, *theta)[: len(q)]

        if self.transposed:
            push = jvp(at, p)
            return lambda v: self._damped(push(v), v)
        back = vjp(at, p)[1]
        return lambda v: self._damped(back(v)[0], v)

    def _damped(self, y: Vector, v: Vector) -> Vector:
        return [a + self.damping * u for a, u in zip(y, v, strict=True)]


def solution(system: System, b: Vector, *point: Vector) -> Vector:
    """The solution as a differentiable function of ``b`` and of the point, whatever the solver does."""
    if not under_transform():
        return system.solve(b, *point).x
    system = replace(system, counts=tuple(len(column) for column in (b, *point)))
    return list(_Solution.apply(system, *b, *(x for column in point for x in column)))


class _Solution(torch.autograd.Function):
    """The solution as a node: the solver's iterations are not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(system: System, *tensors: Tensor) -> tuple[Tensor, ...]:
        b, *point = _columns(system.counts, [x.detach() for x in tensors])
        return tuple(x.clone() for x in system.solve(b, *point).x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.system, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """``w = A^-T xbar``, which is b's cotangent; the point's is that of ``-<w, A(point) x>``."""
        _, *point, constants, x = _saved(ctx)
        other = replace(ctx.system, transposed=not ctx.system.transposed)
        w = solution(other, [unwrap_dead(v) for v in cotangents], *point, constants)
        back = vjp(lambda *at: ctx.system.product(*at, constants)(x), *point)[1]
        found = back([-v for v in w])
        return (None, *w, *(v for column in found for v in column), *[None] * len(constants))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """``dx = A^-1 (db - dA x)``."""
        b, *point, constants, x = _saved(ctx)
        rows = zip([*b, *(v for column in point for v in column)], tangents[1:], strict=False)
        filled = [torch.zeros_like(v) if t is None else t for v, t in rows]
        db, *along = _columns(ctx.system.counts[:-1], filled)
        moved = jvp(lambda *at: ctx.system.product(*at, constants)(x), *point)(*along)
        return tuple(solution(ctx.system, [u - v for u, v in zip(db, moved, strict=True)], *point, constants))


def _saved(ctx: Any) -> list[Vector]:
    """b, the point, its constants and the solution."""
    return _columns((*ctx.system.counts, ctx.system.counts[0]), [unwrap_dead(x) for x in ctx.saved_tensors])


def _columns(counts: Sequence[int], rows: Sequence[Tensor]) -> list[Vector]:
    rest = iter(rows)
    return [[next(rest) for _ in range(count)] for count in counts]


def at_point(system: System, point: list[Vector]) -> tuple[Vector, Callable[[Vector], list[Any]]]:
    """The values of F, and its vector-Jacobian product in all its arguments except the constants."""
    *variables, constants = point
    return vjp(lambda *columns: system.function(*columns, constants), *variables)
