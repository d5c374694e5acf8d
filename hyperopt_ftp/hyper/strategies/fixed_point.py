"""The linear system at a fixed point, of which only products can be formed, its solvers, and its solution as a function
that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.second_order import twice_differentiable
from ..core.torch_private import refuse_forward_twice, under_transform, unwrap_dead, values_of
from ..core.vjp import Vector, dot, jvp, vjp


class Solved(NamedTuple):
    """What a linear solver found."""

    x: Vector
    iterations: int  # products with A
    residual: Tensor  # shape (): |b - A x| / |b|, or an upper bound of it


def tolerance_of(residual: Tensor, given: float | None) -> float:
    """The given tolerance, or the limit of rounding in the dtype of a residual."""
    return torch.finfo(residual.dtype).eps ** (2 / 3) if given is None else given


def diverges(solver: str, residual: float) -> ArithmeticError:
    cause = {
        "neumann": "the steps do not contract here: train on, lower the learning rate, or raise damping",
        "cg": "d step / d params is not symmetric and positive here: take SGD, train on, or solver='neumann'",
        "dense": "the matrix is singular here, or nearly: raise damping",
    }
    text = f"Implicit, solver {solver!r}: the residual grew to {residual:.3g} of the right-hand side"
    return ArithmeticError(f"{text}; {cause[solver]}")


def neumann(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """The series ``sum_j (I - A)^j b``; its last term bounds the residual where it converges."""
    x, term, residual = b, b, size(b)
    for i in range(iterations):
        term = [t - a for t, a in zip(term, matvec(term), strict=True)]
        x = [u + t for u, t in zip(x, term, strict=True)]
        residual = size(term)
        if done(residual):
            return Solved(x, i + 1, residual)
    return Solved(x, iterations, residual)


def conjugate_gradients(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """For a symmetric positive A; an exact solution does not change."""
    x, r, p = [torch.zeros_like(u) for u in b], b, b
    rr = dot(r, r)
    eps = torch.finfo(rr.dtype).eps
    done_with, bent = (10 * eps) ** 2 * rr, rr < 0  # below that all is rounding; not bent yet
    for i in range(iterations):
        q = matvec(p)
        pq = dot(p, q)
        bent = bent | ((pq < -(eps**0.5) * (dot(p, p) * dot(q, q)).sqrt()) & (rr > done_with))
        alpha = ratio(rr, pq)
        x = [u + alpha.to(u) * v for u, v in zip(x, p, strict=True)]
        r = [u - alpha.to(u) * v for u, v in zip(r, q, strict=True)]
        rr, old = dot(r, r), rr
        beta = ratio(rr, old)
        p = [u + beta.to(u) * v for u, v in zip(r, p, strict=True)]
        if done(size(r)):
            iterations = i + 1
            break
    # Where A is not positive the iterations may still arrive; if not, what they have found is no solution at all.
    lost = bent & (size(r) > 1)
    # Where A is singular, x grows until rounding parts r from b - A x.
    return Solved(x, iterations, torch.where(lost, torch.inf, size(_residual(matvec, b, x))))


def dense(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """By the matrix itself, whatever it is."""
    x = solved_by(columns_of(matvec, b), b)
    return Solved(x, sum(u.numel() for u in b), size(_residual(matvec, b, x)))


def _residual(matvec: Any, b: Vector, x: Vector) -> Vector:
    return [u - v for u, v in zip(b, matvec(x), strict=True)]


def columns_of(matvec: Any, like: Vector) -> Tensor:
    """The matrix of a linear function, a product for each column."""
    units = torch.eye(sum(u.numel() for u in like), dtype=like[0].dtype, device=like[0].device)
    return torch.stack([_joined(matvec(_divided(e, like))) for e in units], 1)


def solved_by(matrix: Tensor, b: Vector) -> Vector:
    """What is not finite where the matrix is singular."""
    return _divided(torch.linalg.solve_ex(matrix, _joined(b))[0], b)


def _joined(x: Vector) -> Tensor:
    return torch.cat([u.reshape(-1).to(x[0]) for u in x])


def _divided(x: Tensor, like: Vector) -> Vector:
    return [v.view_as(u).to(u) for u, v in zip(like, x.split([u.numel() for u in like]), strict=True)]


def identity(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """A taken for the identity: no products and no residual."""
    return Solved(b, 0, torch.zeros_like(size(b)))


SOLVERS = {"neumann": neumann, "cg": conjugate_gradients, "dense": dense, "identity": identity}


def norm(x: Vector) -> Tensor:
    return dot(x, x).sqrt()


def ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


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

    def solve(self, b: Vector, p: Vector, *theta: Vector) -> Solved:
        """At most ``iterations`` products; under a transform, which hides the residual, all of them."""
        size = norm(b)
        if not bool(values_of(size).isfinite().all()):
            return Solved([u * torch.nan for u in b], 0, size)  # of no use to anybody: nothing to judge
        small = tolerance_of(size, self.tolerance)

        def done(residual: Tensor) -> bool:
            return not under_transform() and not small < residual.item() < 1e3  # or it diverges, which is judged

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
    if not under_transform() and not torch.is_grad_enabled():
        return system.solve(b, *point).x
    other = replace(system, transposed=not system.transposed)

    def rest(x: Vector, b: Vector, *point: Vector) -> Vector:
        return [a - u for a, u in zip(system.product(*point)(x), b, strict=True)]

    return solved(
        Equation(
            rest,
            lambda b, *point: system.solve(b, *point).x,
            lambda v, x, b, *point: solution(other, v, *point),
            lambda v, x, b, *point: solution(system, v, *point),
        ),
        b,
        *point,
    )


@dataclass(frozen=True)
class Equation:
    """``F(x, *columns) = 0``, where columns are lists of tensors: the first of the size of x, the last of constants."""

    function: Callable[..., Vector]  #: F
    find: Callable[..., Vector]  #: x of the columns, in any way: it is not differentiated
    back: Callable[..., Vector]  #: ``back(v, x, *columns)``: w of ``(dF/dx)^T w = v``
    push: Callable[..., Vector]  #: ``push(v, x, *columns)``: w of ``(dF/dx) w = v``
    counts: tuple[int, ...] = ()  #: of tensors, of each column


def solved(equation: Equation, *columns: Vector) -> Vector:
    """x as a function of the columns with derivatives of any order, by the implicit function theorem."""
    refuse_forward_twice("the solution of an equation")
    equation = replace(equation, counts=tuple(map(len, columns)))
    return list(_Solved.apply(equation, *(x for column in columns for x in column)))


class _Solved(torch.autograd.Function):
    """x as a node: how it is found is not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(equation: Equation, *tensors: Tensor) -> tuple[Tensor, ...]:
        with twice_differentiable():
            found = equation.find(*_columns(equation.counts, [x.detach() for x in tensors]))
        return tuple(x.clone() for x in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.equation, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """``-<w, F(x, columns)>`` has the columns' cotangents, with w = (dF/dx)^-T xbar."""
        with twice_differentiable():
            *columns, constants, x = _saved(ctx)
            w = ctx.equation.back([unwrap_dead(v) for v in cotangents], x, *columns, constants)
            back = vjp(lambda *at: ctx.equation.function(x, *at, constants), *columns)[1]
            found = back([-v for v in w])
        return (None, *(v for column in found for v in column), *[None] * len(constants))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """``dx = -(dF/dx)^-1 (dF/dcolumns) dcolumns``."""
        with twice_differentiable():
            *columns, constants, x = _saved(ctx)
            rows = zip((v for column in columns for v in column), tangents[1:], strict=False)
            along = _columns(ctx.equation.counts[:-1], [torch.zeros_like(v) if t is None else t for v, t in rows])
            moved = jvp(lambda *at: ctx.equation.function(x, *at, constants), *columns)(*along)
            return tuple(ctx.equation.push([-v for v in moved], x, *columns, constants))


def _saved(ctx: Any) -> list[Vector]:
    """The columns, and x."""
    return _columns((*ctx.equation.counts, ctx.equation.counts[0]), [unwrap_dead(x) for x in ctx.saved_tensors])


def _columns(counts: Sequence[int], rows: Sequence[Tensor]) -> list[Vector]:
    rest = iter(rows)
    return [[next(rest) for _ in range(count)] for count in counts]


def at_point(system: System, point: list[Vector]) -> tuple[Vector, Callable[[Vector], list[Any]]]:
    """The values of F, and its vector-Jacobian product in all its arguments except the constants."""
    *variables, constants = point
    return vjp(lambda *columns: system.function(*columns, constants), *variables)
