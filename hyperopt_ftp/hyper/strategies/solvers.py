"""Solvers of linear systems ``A x = b`` where only products with A can be formed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.vjp import Vector, dot


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
            return Solved(x, i + 1, size(r))
    # Where A is not positive the iterations may still arrive; if not, what they have found is no solution at all.
    lost = bent & (size(r) > 1)
    return Solved(x, iterations, torch.where(lost, torch.inf, size(r)))


def dense(matvec: Any, b: Vector, iterations: int, size: Any, done: Any) -> Solved:
    """By the matrix itself, whatever it is."""
    x = solved_by(columns_of(matvec, b), b)
    return Solved(x, sum(u.numel() for u in b), size([u - v for u, v in zip(b, matvec(x), strict=True)]))


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
