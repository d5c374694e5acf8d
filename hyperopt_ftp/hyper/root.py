"""The solution of an equation of the user's, with the derivative that the implicit function theorem gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import explained, shown, warn_caller
from ..types import TreeT
from .core.leaves import detached_leaves, is_float
from .core.replay import Replay
from .core.torch_private import tracked, uncompiled, under_transform, values_of
from .core.vjp import Vector, dot, vjp
from .guards.call_arguments import check_leaves
from .guards.calls import read_knobs
from .guards.graphs import loses_derivative, refuse_outer_tensors
from .guards.messages import EQUATION
from .strategies.fixed_point import Equation, System, columns_of, norm, solution, solved, solved_by
from .strategies.implicit import Implicit

#: Entries of x up to which its matrix is formed where nothing else is asked for.
SMALL = 1000


@uncompiled
@explained("root(F, x0, theta)")
def root(
    function: Callable[[TreeT, Any], TreeT],
    x0: TreeT,
    theta: Any,
    *,
    solve: Callable[[TreeT, Any], TreeT] | None = None,
    strategy: Implicit | None = None,
) -> TreeT:
    """The x with ``F(x, theta) = 0``, differentiable in theta whatever has solved it.

    With ``w`` of ``((dF/dx)^T + damping I) w = dL/dx``, by the implicit function theorem::

        dL/dtheta = -(dF/dtheta)^T w

    Derivatives of any order are right (arXiv 2105.15183), by autograd and by ``torch.func``. The solver is not
    differentiated; the derivative in ``x0`` is 0.

    Args:
        function: ``F(x, theta)``, of the structure and shapes of x, the same function each time.
        x0: where the solver starts, of the structure of x: a tree of float32 or float64 tensors.
        theta: a tree, with all tensors that a derivative is taken in.
        solve: ``solve(x0, theta)``, any solver, which gets tensors without a graph. ``None``: Newton's method, for at
            most 1,000 entries of x.
        strategy: :class:`Implicit`. ``"neumann"`` needs an F whose derivative in x is near I, as of a fixed point.
            ``None``: ``"dense"`` for at most 1,000 entries of x.

    Raises:
        TypeError: an x0 that is not of such tensors; another strategy, or one with ``batches``.
        ValueError: F, or what ``solve`` returned, is not of the form of x0; a large x without ``solve`` or
            ``strategy``; F uses a tensor that requires grad and is not in theta.
        RuntimeError: F takes the number of x or theta (``item()``); inference mode or autocast; two forward transforms,
            one inside the other.
        ArithmeticError: F is not 0 at the x that was found, where the theorem does not hold: an entry is off by more
            than 1 % of its size, or of the way from x0. It is how far Newton's step would move it; for more than 1,000
            entries, what the root mean square of these shares is at least. Or the linear system's residual grows.

    Warns:
        UserWarning: an entry is off by more than the root of the dtype's eps (1.5e-8 for float64), or by more than
            ``strategy.tolerance`` if it is given; the linear solver has stopped above its tolerance.

    >>> import torch, hyperopt_ftp as hft
    >>> two = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> x = hft.root(lambda x, theta: x**2 - theta, torch.ones_like(two), two)
    >>> round(x.item(), 6), round(torch.autograd.grad(x, two)[0].item(), 6)      # 1 / (2 sqrt(2))
    (1.414214, 0.353553)
    """
    return _root("root", function, x0, theta, solve, strategy)


@uncompiled
@explained("fixed_point(f, x0, theta)")
def fixed_point(
    function: Callable[[TreeT, Any], TreeT],
    x0: TreeT,
    theta: Any,
    *,
    solve: Callable[[TreeT, Any], TreeT] | None = None,
    strategy: Implicit | None = None,
) -> TreeT:
    """The x with ``x = f(x, theta)``: :func:`root` of ``F(x, theta) = x - f(x, theta)``, which is a layer of a DEQ.

    As :func:`root`, but without ``solve`` it repeats ``x <- f(x, theta)``, at most 1,000 times, and without
    ``strategy`` more than 1,000 entries take ``Implicit("neumann", iterations=1000)``: both converge where f contracts.
    ``Implicit("identity")`` takes df/dx for 0 in the derivative: the Jacobian-free one (arXiv 2103.12803).

    >>> import torch, hyperopt_ftp as hft
    >>> a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> x = hft.fixed_point(lambda x, theta: theta * x + 1, torch.zeros_like(a), a)
    >>> round(x.item(), 6), round(torch.autograd.grad(x, a)[0].item(), 6)        # 1 / (1 - a), 1 / (1 - a)^2
    (2.0, 4.0)
    """

    def moved(x: TreeT, theta: Any) -> TreeT:
        rows, rebuild = tree.flatten(x)
        pairs = zip(rows, _fitted("fixed_point: f", function(x, theta), rows, rebuild), strict=True)
        return rebuild([u - v for u, v in pairs])

    return _root("fixed_point", moved, x0, theta, solve, strategy)


def _root(name: str, function: Any, x0: Any, theta: Any, solve: Any, strategy: Any) -> Any:
    start, rebuild = tree.flatten(x0)
    fit = [isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64) and x.numel() for x in start]
    if not fit or not all(fit):
        raise TypeError(f"{name}: x0 must hold float32 or float64 tensors, got {_kinds(start)}")
    if torch.is_inference_mode_enabled() or Replay().autocasts:
        raise RuntimeError(f"{name} needs gradients in full precision: leave torch.inference_mode() and autocast")
    check_leaves([*start, *tree.leaves(theta)])
    if not (solve is None or callable(solve)):
        raise TypeError(f"{name}: solve must be a function solve(x0, theta) -> x, got {shown(solve)}")
    if not isinstance(strategy, Implicit | None) or (strategy and strategy.batches > 1):
        raise TypeError(f"{name}: strategy must be hft.Implicit(...), with batches=1, got {shown(strategy)}")
    count = sum(x.numel() for x in start)
    if name == "root" and count > SMALL and (solve is None or strategy is None):
        raise ValueError(
            f"root: x0 has {count} entries, and matrices are formed up to {SMALL}; give solve= and "
            "strategy=hft.Implicit(...)"
        )
    how = strategy or (Implicit("dense") if count <= SMALL else Implicit("neumann", iterations=1000))
    rows, whole = tree.flatten(theta)
    kinds = [is_float(x) if isinstance(x, Tensor) else None for x in rows]
    varied, constants = ([x for x, kind in zip(rows, kinds, strict=True) if kind is wanted] for wanted in (True, False))
    asked = [tracked(x) for x in varied] if torch.is_grad_enabled() else None

    def given(varied: Vector, constants: Vector) -> Any:
        rest = {True: iter(varied), False: iter(constants)}
        return whole([x if kind is None else next(rest[kind]) for x, kind in zip(rows, kinds, strict=True)])

    def equation(x: Vector, start: Vector, varied: Vector, constants: Vector) -> Vector:
        return _fitted(f"{name}: F", function(rebuild(x), given(varied, constants)), x, rebuild)

    def find(*columns: Vector) -> Vector:
        start, varied, constants = columns
        _refuse_lost(equation, asked, start, varied, constants)
        if solve is None:
            return _iterated(name, system, *columns)
        with torch.enable_grad():
            found = solve(rebuild([x.clone() for x in start]), given(varied, constants))  # it may write into x0
        x = [v.detach() for v in _fitted(f"{name}: what solve returned", found, start, rebuild)]
        _judge(name, system, x, *columns)
        return x

    system = how.system_of(equation)
    back, push = (
        lambda v, x, *columns, transposed=transposed: solution(how.system_of(equation, transposed), v, x, *columns)
        for transposed in (False, True)
    )
    return rebuild(solved(Equation(equation, find, back, push), start, varied, constants))


def _fitted(what: str, found: Any, x: Vector, rebuild: tree.Structure) -> Vector:
    row = tree.fitted(found, rebuild)
    if row is None or _kinds(row) != _kinds(x):
        got = shown(found) if row is None else rebuild(_kinds(row))
        raise ValueError(f"{what} must be like x0, {rebuild(_kinds(x))}, got {got}")
    return row


def _kinds(x: list[Any]) -> list[str]:
    return [f"{tuple(u.shape)} {u.dtype}" if isinstance(u, Tensor) else shown(u) for u in x]


def _refuse_lost(equation: Any, asked: list[bool] | None, start: Vector, varied: Vector, constants: Vector) -> None:
    """Raise where F captures a tensor, or reads a number, whose derivative would be lost; ``asked``: of theta's."""
    if under_transform():
        with refuse_outer_tensors(EQUATION, leaves_too=asked is not None), torch.no_grad():
            equation(start, start, varied, constants)
        return
    x, of_theta = (detached_leaves(column)[0] for column in (start, varied))
    knobs = [*x, *(u for u, yes in zip(of_theta, asked or [], strict=False) if yes)]
    with refuse_outer_tensors(EQUATION), read_knobs(EQUATION, knobs, ()), torch.enable_grad():
        values = equation(x, x, of_theta, constants)
    lost = loses_derivative(EQUATION, values, [*x, *of_theta]) if asked is not None else None
    if lost is not None:
        raise lost


def _iterated(name: str, system: System, *columns: Vector) -> Vector:
    """By Newton's steps, or those of a fixed point, until they are small. The way that is left is not 40 times as long,
    as 1,000 steps would not have come there then."""
    x = start = columns[0]
    small, off = torch.finfo(start[0].dtype).eps ** 0.75, math.inf
    for _ in range(50 if name == "root" else 1000):
        change = _newton(x, *_near(system, x, *columns)) if name == "root" else system.function(x, *columns)
        x = [u - v for u, v in zip(x, change, strict=True)]
        off = values_of(_share(change, _sizes(x, start, small))).max().item()
        if not off > small:  # NaN too
            break
    if not off <= small:
        _judge(name, system, x, *columns)
    return x


def _judge(name: str, system: System, x: Vector, *columns: Vector) -> None:
    """Whether F is 0 at x: by Newton's step; for a large x by the least way to there, ``|F|^2 / |J^T F|``."""
    values, back = _near(system, x, *columns)
    size = dot(values, values)
    small = torch.finfo(size.dtype).eps ** 0.5 if system.tolerance is None else system.tolerance
    sizes = _sizes(x, columns[0], small)
    if (count := sum(u.numel() for u in x)) <= SMALL:
        off = _share(_newton(x, values, back), sizes)
    else:
        off = size / norm([u * v for u, v in zip(back(values)[0], sizes, strict=True)]) / count**0.5
    off = values_of(torch.where(size == 0, 0.0, off)).max().item()  # of all examples under vmap
    if off <= small:
        return
    words = (
        f"{name}: F is not 0 where the solver stopped: an entry of x is off by {off:.2g} of its size, tolerance "
        f"{small:.2g}, so the derivative would be wrong. Start nearer to the solution, give solve= a solver that "
        "arrives, or accept it by strategy=hft.Implicit(tolerance=...)"
    )
    if math.isnan(off):
        words += "; nan: dF/dx is singular there, or F is not finite"
    if not off <= 1e-2:
        raise ArithmeticError(words)
    warn_caller(words)


def _near(system: System, x: Vector, *columns: Vector) -> tuple[Vector, Any]:
    return vjp(lambda q: system.function(q, *columns), x)


def _newton(x: Vector, values: Vector, back: Any) -> Vector:
    return solved_by(columns_of(lambda v: back(v)[0], x).mT, values)


def _sizes(x: Vector, start: Vector, small: float) -> Vector:
    """Of each entry, or of the way to it, but so much of the largest that ``small`` of it is no less than rounding."""
    eps = torch.finfo(x[0].dtype).eps
    sizes = [torch.maximum(u.abs(), (u - v).abs()) for u, v in zip(x, start, strict=True)]
    least = eps / max(small, eps) * _most(sizes)
    return [torch.maximum(u, least.to(u)) for u in sizes]


def _share(change: Vector, sizes: Vector) -> Tensor:
    """The largest share of an entry that changes."""
    return _most([torch.where(c == 0, 0.0, c.abs() / size) for c, size in zip(change, sizes, strict=True)])


def _most(x: Vector) -> Tensor:
    return torch.stack([u.max().to(x[0].device) for u in x]).max()
