"""Linear systems ``A x = b`` where only products with A can be formed, and vector-Jacobian products to form them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .steps import fresh, pull, under_transform

__all__ = ["SOLVERS", "Solved", "diverges", "dot", "solve", "vjp"]

Vector = list[Tensor]


class Solved(NamedTuple):
    """What a linear solver found."""

    x: Vector
    iterations: int  # products with A
    residual: Tensor  # shape (): |b - A x| / |b|, or an upper bound of it


def solve(
    solver: str, matvec: Callable[[Vector], Vector], b: Vector, iterations: int, tolerance: float | None
) -> Solved:
    """``x`` with ``matvec(x) = b``, from as many products as it takes, at most ``iterations``.

    Under a transform nobody can look at a residual on the way: all iterations are made.

    Raises:
        ArithmeticError: a residual that grows.
    """
    size = _norm(b)
    small = torch.finfo(size.dtype).eps ** (2 / 3) if tolerance is None else tolerance

    def done(residual: Tensor) -> bool:
        if under_transform():
            return False
        if not bool(residual < 1e3):
            raise diverges(solver, residual.item())
        return bool(residual <= small)

    return SOLVERS[solver](matvec, b, iterations, lambda r: _ratio(_norm(r), size), done)


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
    for i in range(iterations):
        q = matvec(p)
        alpha = _ratio(rr, dot(p, q))
        x = [u + alpha.to(u) * v for u, v in zip(x, p, strict=True)]
        r = [u - alpha.to(u) * v for u, v in zip(r, q, strict=True)]
        rr, old = dot(r, r), rr
        beta = _ratio(rr, old)
        p = [u + beta.to(u) * v for u, v in zip(r, p, strict=True)]
        if done(size(r)):
            return Solved(x, i + 1, size(r))
    return Solved(x, iterations, size(r))


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


def _or_zeros(found: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if found is None else found


def dot(x: Vector, y: Vector) -> Tensor:
    """Inner product of two lists of tensors."""
    return torch.stack([(u * v).sum().to(x[0].device) for u, v in zip(x, y, strict=True)]).sum()


def _norm(x: Vector) -> Tensor:
    return dot(x, x).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
