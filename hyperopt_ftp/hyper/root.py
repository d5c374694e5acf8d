"""The solution of an equation of the user's, with the derivative that the implicit function theorem gives it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import callers_level, check_fit, explained, shown
from ..optimizers.leafwise import check_params
from ..types import TreeT
from .core.leaves import detached_leaves, is_float
from .core.replay import Replay
from .core.torch_private import tracked, under_transform, untraced, values_of
from .core.vjp import Vector, dot, vjp
from .guards.call_arguments import check_leaves
from .guards.calls import read_knobs
from .guards.graphs import loses_derivative, refuse_outer_tensors
from .guards.messages import EQUATION
from .strategies.fixed_point import Equation, System, at_point, solution, solved
from .strategies.implicit import Implicit
from .strategies.solvers import columns_of, norm, solved_by

#: Entries of x up to which its matrix is formed where nothing else is asked for.
SMALL = 1000
_ADVICE = "start nearer to the solution, or give solve= a solver that arrives"


@untraced
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

    Derivatives of any order are right (arXiv 2105.15183): by ``backward``, ``torch.autograd.grad``, also with
    ``create_graph=True``, and the transforms of ``torch.func``. The solver is not differentiated; the derivative in
    ``x0`` is 0.

    Args:
        function: ``F(x, theta)``, of the structure and shapes of x, the same function each time. Tensors that a
            derivative is taken in go through theta.
        x0: where the solver starts: a tree of float32 or float64 tensors.
        theta: a tree. A derivative may be taken in its floating-point tensors.
        solve: ``solve(x0, theta)``, any solver, which gets tensors without a graph. ``None``: Newton's method, for at
            most 1,000 entries of x.
        strategy: :class:`Implicit`. ``"neumann"`` needs an F whose derivative in x is near I, as of a fixed point.
            ``None``: ``"dense"`` for at most 1,000 entries of x.

    Returns:
        x, in the structure of ``x0``.

    Raises:
        TypeError: an x0 that is not of such tensors; another strategy, or one with ``batches``.
        ValueError: F, or what ``solve`` returned, has another structure, shape or dtype than x0; a large x without
            ``solve`` or ``strategy``; F uses a tensor that requires grad and is not in theta.
        RuntimeError: F takes the number of x or theta (``item()``); inference mode or autocast; two forward transforms,
            one inside the other.
        ArithmeticError: F is not 0 at the x that was found, where the theorem does not hold: x is off by more than 1 %
            of its size (or of the way from x0) along the gradient of ``|F|^2``; or the linear system's residual grows,
            as where dF/dx is singular.

    Warns:
        UserWarning: x is off by more than the root of the dtype's eps (1.5e-8 for float64), or by more than
            ``strategy.tolerance`` if it is given; the linear solver has stopped above its tolerance.

    >>> import torch, hyperopt_ftp as hft
    >>> two = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> x = hft.root(lambda x, theta: x**2 - theta, torch.ones_like(two), two)
    >>> round(x.item(), 6), round(torch.autograd.grad(x, two)[0].item(), 6)      # 1 / (2 sqrt(2))
    (1.414214, 0.353553)
    """
    return _root("root", function, x0, theta, solve, strategy)


@untraced
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

    Arguments, result and errors are those of :func:`root`, but where None is given: ``solve`` repeats
    ``x <- f(x, theta)``, at most 1,000 times, and ``strategy`` is ``Implicit("neumann", iterations=1000)`` for more
    than 1,000 entries of x. Both converge where f contracts. ``Implicit("identity")`` takes df/dx for 0 in the
    derivative: the Jacobian-free one (arXiv 2103.12803).

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
    check_params(x0)
    if not all(x.numel() for x in start) or not start or any(x.dtype in tree.NARROW for x in start):
        got = [f"{tuple(x.shape)} {x.dtype}" for x in start]
        raise TypeError(f"{name}: x0 must hold float32 or float64 tensors, got {got}")
    if torch.is_inference_mode_enabled() or Replay().autocasts:
        raise RuntimeError(f"{name} needs gradients in full precision: leave torch.inference_mode() and autocast")
    check_leaves([*start, *tree.leaves(theta)])
    check_fit(function, x0, theta)
    how = _strategy(name, sum(x.numel() for x in start), solve, strategy)
    rows, whole = tree.flatten(theta)
    kinds = [is_float(x) if isinstance(x, Tensor) else None for x in rows]
    own, constants = ([x for x, kind in zip(rows, kinds, strict=True) if kind is wanted] for wanted in (True, False))
    asked = [tracked(x) for x in own] if torch.is_grad_enabled() else None

    def given(own: Vector, constants: Vector) -> Any:
        rest = {True: iter(own), False: iter(constants)}
        return whole([x if kind is None else next(rest[kind]) for x, kind in zip(rows, kinds, strict=True)])

    def equation(x: Vector, start: Vector, own: Vector, constants: Vector) -> Vector:
        return _fitted(f"{name}: F", function(rebuild(x), given(own, constants)), x, rebuild)

    def find(*columns: Vector) -> Vector:
        start, own, constants = columns
        _refuse_lost(equation, asked, start, own, constants)
        if solve is None:
            x = _iterated(system, name == "root", *columns)
        else:
            with torch.enable_grad():
                found = solve(rebuild([x.clone() for x in start]), given(own, constants))  # it may write into x0
            x = [v.detach() for v in _fitted(f"{name}: what solve returned", found, start, rebuild)]
        _judge(name, system, x, *columns)
        return x

    system = how.system_of(equation)
    back, push = (
        lambda v, x, *columns, transposed=transposed: solution(how.system_of(equation, transposed), v, x, *columns)
        for transposed in (False, True)
    )
    return rebuild(solved(Equation(equation, find, back, push), start, own, constants))


def _strategy(name: str, count: int, solve: Any, strategy: Any) -> Implicit:
    if solve is not None and not callable(solve):
        raise TypeError(f"{name}: solve must be a function solve(x0, theta) -> x, got {shown(solve)}")
    if strategy is not None and (not isinstance(strategy, Implicit) or strategy.batches > 1):
        raise TypeError(
            f"{name}: strategy must be hft.Implicit(...), with batches=1, got {shown(strategy)}; to differentiate a "
            "solver's own steps write them in operations of torch, without root"
        )
    if name == "root" and count > SMALL and (solve is None or strategy is None):
        raise ValueError(
            f"root: x0 has {count} entries, and matrices are formed up to {SMALL}; give solve= and "
            "strategy=hft.Implicit(...)"
        )
    return strategy or (Implicit("dense") if count <= SMALL else Implicit("neumann", iterations=1000))


def _fitted(what: str, found: Any, x: Vector, rebuild: tree.Structure) -> Vector:
    row = tree.fitted(found, rebuild)
    if row is None:
        raise ValueError(f"{what} must have the structure of x0, {tree.structure(rebuild(x))}, got {shown(found)}")
    for v, u in zip(row, x, strict=True):
        if not isinstance(v, Tensor) or v.shape != u.shape or v.dtype != u.dtype:
            got = f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else shown(v)
            raise ValueError(f"{what} must have the shape and dtype of x0, {tuple(u.shape)} {u.dtype}, got {got}")
    return row


def _refuse_lost(equation: Any, asked: list[bool] | None, start: Vector, own: Vector, constants: Vector) -> None:
    """Raise where F captures a tensor, or reads a number, whose derivative would be lost; ``asked``: of theta's."""
    if under_transform():
        with refuse_outer_tensors(EQUATION, leaves_too=asked is not None), torch.no_grad():
            equation(start, start, own, constants)
        return
    x, of_theta = (detached_leaves(column)[0] for column in (start, own))
    knobs = [*x, *(u for u, yes in zip(of_theta, asked or [], strict=False) if yes)]
    with refuse_outer_tensors(EQUATION), read_knobs(EQUATION, knobs, ()), torch.enable_grad():
        values = equation(x, x, of_theta, constants)
    lost = loses_derivative(EQUATION, values, [*x, *of_theta]) if asked is not None else None
    if lost is not None:
        raise lost


def _iterated(system: System, by_newton: bool, start: Vector, *rest: Vector) -> Vector:
    """By Newton's steps, or those of a fixed point, until they are small; others judge where that is."""
    x, small = start, torch.finfo(start[0].dtype).eps ** 0.75
    for _ in range(50 if by_newton else 1000):
        if by_newton:
            values, back = vjp(lambda q: system.function(q, start, *rest), x)
            change = solved_by(columns_of(lambda v, back=back: back(v)[0], x).mT, values)
        else:
            change = system.function(x, start, *rest)
        x = [u - v for u, v in zip(x, change, strict=True)]
        if not _far(change, x, start) > small:  # NaN too
            break
    return x


def _far(change: Vector, x: Vector, start: Vector) -> float:
    """A step relative to each entry, or to the way to it, or to a small share of all: entries may differ in size."""
    least = torch.finfo(x[0].dtype).eps ** 0.25 * torch.maximum(
        norm(x), norm([u - v for u, v in zip(x, start, strict=True)])
    )
    rows = []
    for c, u, v in zip(change, x, start, strict=True):
        size = torch.maximum(torch.maximum(u.abs(), (u - v).abs()), least.to(u))
        rows.append(torch.where(c == 0, 0.0, c.abs() / size).max())
    return max(values_of(row).max().item() for row in rows)


def _largest(distance: Tensor, x: Vector, start: Vector) -> float:
    """Relative to x, or to the way to it, where it ends at 0; of all examples under vmap."""
    size = torch.maximum(norm(x), norm([u - v for u, v in zip(x, start, strict=True)]))
    return values_of(torch.where(distance == 0, 0.0, distance / size)).max().item()


def _judge(name: str, system: System, x: Vector, start: Vector, *rest: Vector) -> None:
    """Whether F is 0 at x: it would be if x went ``|F|^2 / |J^T F|`` along the gradient of ``|F|^2``."""
    values, back = at_point(system, [x, start, *rest])
    size = dot(values, values)
    off = _largest(torch.where(size == 0, 0.0, size / norm(back(values)[0])), x, start)
    small = torch.finfo(size.dtype).eps ** 0.5 if system.tolerance is None else system.tolerance
    if off <= small:
        return
    if math.isnan(off):
        raise ArithmeticError(f"{name}: what the solver found is not finite, as where dF/dx is singular; {_ADVICE}")
    words = (
        f"{name}: F is not 0 where the solver stopped: x is off by {off:.2g} of its size, tolerance {small:.2g}, so "
        "the derivative would be wrong"
    )
    if off > 1e-2:
        raise ArithmeticError(f"{words}; {_ADVICE}")
    warnings.warn(f"{words} by about as much; solve better, or accept it by tolerance=", UserWarning, callers_level())
