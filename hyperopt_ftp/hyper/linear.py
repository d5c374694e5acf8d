"""Linear systems ``A x = b`` where only products with A can be formed, and vector-Jacobian products to form them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .functorch import alive, under_transform, values_of
from .leaves import fresh
from .steps import pull

Vector = list[Tensor]


class Solved(NamedTuple):
    """What a linear solver found."""

    x: Vector
    iterations: int  # products with A
    residual: Tensor  # shape (): |b - A x| / |b|, or an upper bound of it


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
        """At most ``iterations`` products; under a transform, where none can look, all of them."""
        size = _norm(b)
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
        found = SOLVERS[self.solver](product, b, self.iterations, lambda r: _ratio(_norm(r), size), done)
        self.judge(found)
        return found

    def product(self, p: Vector, *theta: Vector) -> Callable[[Vector], Vector]:
        """The matrix of the system as a function."""

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
    """The solution as a function of ``b`` and of the point: differentiable as such, whatever the solver does."""
    if not under_transform():
        return system.solve(b, *point).x
    call = _Call(system, [len(column) for column in (b, *point)])
    return list(_Solution.apply(call, *b, *(x for column in point for x in column)))


@dataclass(frozen=True)
class _Call:
    """What the node of a solution has to know beside its tensors."""

    system: System
    counts: list[int]  # of b, of each column of the point, and of its constants


class _Solution(torch.autograd.Function):
    """The iterations of a solver are not differentiated: their derivative is another one, or none, where they end."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        b, *point = _columns(call.counts, [x.detach() for x in tensors])
        return tuple(x.clone() for x in call.system.solve(b, *point).x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.system, ctx.counts = inputs[0].system, inputs[0].counts
        ctx.save_for_backward(*inputs[1:], *output)
        ctx.save_for_forward(*inputs[1:], *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """``w = A^-T xbar``, which is b's cotangent; the point's is that of ``-<w, A(point) x>``."""
        _, *point, constants, x = _saved(ctx)
        other = replace(ctx.system, transposed=not ctx.system.transposed)
        w = solution(other, [alive(v) for v in cotangents], *point, constants)
        back = vjp(lambda *at: ctx.system.product(*at, constants)(x), *point)[1]
        found = back([-v for v in w])
        return (None, *w, *(v for column in found for v in column), *[None] * len(constants))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """``dx = A^-1 (db - dA x)``."""
        b, *point, constants, x = _saved(ctx)
        rows = zip([*b, *(v for column in point for v in column)], tangents[1:], strict=False)
        filled = [torch.zeros_like(v) if t is None else t for v, t in rows]
        db, *along = _columns(ctx.counts[:-1], filled)
        moved = jvp(lambda *at: ctx.system.product(*at, constants)(x), *point)(*along)
        return tuple(solution(ctx.system, [u - v for u, v in zip(db, moved, strict=True)], *point, constants))


def _saved(ctx: Any) -> list[Vector]:
    """b, the point, its constants and the solution."""
    return _columns([*ctx.counts, ctx.counts[0]], [alive(x) for x in ctx.saved_tensors])


def _columns(counts: list[int], rows: Sequence[Tensor]) -> list[Vector]:
    rest = iter(rows)
    return [[next(rest) for _ in range(count)] for count in counts]


def tolerance_of(residual: Tensor, given: float | None) -> float:
    """The tolerance that was given, or what rounding allows in the dtype of a residual."""
    return torch.finfo(residual.dtype).eps ** (2 / 3) if given is None else given


def diverges(solver: str, residual: float) -> ArithmeticError:
    cause = {
        "neumann": "the steps do not contract here: train on, lower the learning rate, or raise damping",
        "cg": "d step / d params is not symmetric and positive here: take SGD, train on, or solver='neumann'",
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
    """For a symmetric positive A; a residual of exactly 0 stays where it is."""
    x, r, p = [torch.zeros_like(u) for u in b], b, b
    rr = dot(r, r)
    eps = torch.finfo(rr.dtype).eps
    done_with, bent = (10 * eps) ** 2 * rr, rr < 0  # below that all is rounding; not bent yet
    for i in range(iterations):
        q = matvec(p)
        pq = dot(p, q)
        bent = bent | ((pq < -(eps**0.5) * (dot(p, p) * dot(q, q)).sqrt()) & (rr > done_with))
        alpha = _ratio(rr, pq)
        x = [u + alpha.to(u) * v for u, v in zip(x, p, strict=True)]
        r = [u - alpha.to(u) * v for u, v in zip(r, q, strict=True)]
        rr, old = dot(r, r), rr
        beta = _ratio(rr, old)
        p = [u + beta.to(u) * v for u, v in zip(r, p, strict=True)]
        if done(size(r)):
            return Solved(x, i + 1, size(r))
    # Where A is not positive the iterations may still arrive; if not, what they have found is no solution at all.
    lost = bent & (size(r) > 1)
    return Solved(x, iterations, torch.where(lost, torch.inf, size(r)))


def identity(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """A taken for the identity: no product at all, and nothing that could converge."""
    return Solved(b, 0, torch.zeros_like(size(b)))


SOLVERS = {"neumann": neumann, "cg": conjugate_gradients, "identity": identity}


def vjp(function: Callable[..., Vector], *columns: Vector) -> tuple[Vector, Callable[[Vector], list[Any]]]:
    """Values of a function of lists of tensors, and its vector-Jacobian product, which can be called many times.

    By ``torch.func`` under a transform, and by ``torch.autograd`` without: there, more kinds of losses are possible.
    """
    if under_transform():
        values, pulled = torch.func.vjp(function, *columns)[:2]
        return values, pulled
    rows = [fresh(column)[0] for column in columns]
    with torch.enable_grad():
        outputs = function(*rows)

    def back(cotangents: Vector) -> list[Any]:
        inputs = [x for row in rows for x in row]
        found = iter(pull(outputs, cotangents, inputs, again=True))
        return [[_or_zeros(next(found), x) for x in row] for row in rows]

    return [y.detach() for y in outputs], back


def at_point(system: System, point: list[Vector]) -> tuple[Vector, Callable[[Vector], list[Any]]]:
    """The values of F and its vector-Jacobian product in all that it is a function of, but the constants."""
    *variables, constants = point
    return vjp(lambda *columns: system.function(*columns, constants), *variables)


def jvp(function: Callable[..., Vector], *columns: Vector) -> Callable[..., Vector]:
    """The Jacobian-vector product of a function of lists of tensors, as the transpose of a transpose."""
    if under_transform():
        values, back = torch.func.vjp(function, *columns)[:2]
        forward = torch.func.vjp(back, [torch.zeros_like(y) for y in values])[1]
        return lambda *tangents: forward(tangents)[0]
    rows = [fresh(column)[0] for column in columns]
    inputs = [x for row in rows for x in row]
    with torch.enable_grad():
        outputs = function(*rows)
        dual = [torch.zeros_like(y).requires_grad_() for y in outputs]
        back = pull(outputs, dual, inputs, again=True, graph=True)

    def along(*tangents: Vector) -> Vector:
        pairs = [(w, t) for w, t in zip(back, (t for row in tangents for t in row), strict=True) if w is not None]
        found = pull([w for w, _ in pairs], [t for _, t in pairs], dual, again=True)
        return [_or_zeros(v, y) for v, y in zip(found, dual, strict=True)]

    return along


def _or_zeros(found: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if found is None else found


def dot(x: Vector, y: Vector) -> Tensor:
    """Inner product of two lists of tensors."""
    return torch.stack([(u * v).sum().to(x[0].device) for u, v in zip(x, y, strict=True)]).sum()


def _norm(x: Vector) -> Tensor:
    return dot(x, x).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
