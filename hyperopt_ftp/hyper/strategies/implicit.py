"""The hypergradient at a stationary point, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import check_choice, check_count, explained, shown, warn_caller
from ...hparams import Domain, check_number
from ...types import Solver
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import cotangents_of, detached, detached_leaves, floats, is_float, present, select_floats
from ..core.node import Method, Run, through_node
from ..core.problem import InnerProblem
from ..core.replay import Replay, refuse_other_losses
from ..core.strategy import STEADY, Costs, Strategy, few_steps
from ..core.torch_private import under_transform, values_of
from ..core.vjp import Vector, dot
from .fixed_point import SOLVERS, Solved, System, at_point, diverges, solution, tolerance_of
from .held_state import LIMIT, is_checked, mismatch


@explained()
@dataclass(frozen=True)
class Implicit(Strategy):
    """The derivative at a stationary point, by the implicit function theorem (arXiv 1911.02590).

    All steps are run, and their end ``p`` is taken for a fixed point of the last step. With the optimizer's state held,
    ``F(p, h) = p - update(p; h) = 0`` defines p(h). For a loss L of p::

        dL/dh = -(d F / dh)^T x,    ((dF/dp)^T + damping I) x = dL/dp

    For SGD, ``dF/dp = lr (H + weight_decay I)`` with the Hessian H of the training loss. A product with H costs two
    gradients; H is never formed. Memory is that of one step. The derivative is 0 in what does not move the fixed point:
    lr, momentum, betas, the params and state at the start. A second derivative, by ``torch.func``, takes the end for
    the fixed point again; training is not repeated.

    Holding the state is right if params and hparams act on it through the gradient alone: SGD and Adam, with decay in
    the loss or coupled. It is wrong for decoupled decay or a pull toward an anchor beside momentum (AdamW), for
    lookahead and for schedule-free. One extra product checks this after convergence, but not in 16 bits.

    Args:
        solver: ``"neumann"``: the series ``sum_j (I - dF/dp)^j``, for any optimizer whose steps contract. ``"cg"``:
            conjugate gradients, for a symmetric positive ``dF/dp`` (SGD). ``"dense"``: by the matrix itself, one
            product for each entry of the params. ``"identity"``: ``x = dL/dp``, as if ``dF/dp`` were I: the derivative
            of one step, at its cost (T1-T2, arXiv 1511.06727; SAMA, arXiv 2310.05674).
        iterations: maximal number of products with ``dF/dp``, but for ``"dense"``.
        damping: added to the diagonal, in units of ``dF/dp``.
        tolerance: relative residual ``|b - A x| / |b|`` at which the solver stops, and above which it warns. ``None``:
            ``eps ** (2/3)`` of the dtype (4e-11 for float64). Under a transform all iterations are run.
        batches: ``update`` is averaged over this many of the last batches, to approximate the whole training loss.
        report: a function that is called with each :class:`~hyperopt_ftp.hyper.Solved` (x, iterations, residual).

    Raises:
        ValueError: an unknown solver, iterations or batches below 1, damping or tolerance below 0, fewer steps than
            ``batches``, a derivative of the state at the end.
        ArithmeticError: the residual grows, so the result would be meaningless.
        RuntimeError: a loss with random numbers of its own, since the last step is computed more than once.

    Warns:
        UserWarning: the solver stopped above the tolerance; training has not converged (the remaining steps would
            change ``<dL/dp, p>`` by more than 1 % of ``|dL/dp| |p|``, over the tensors that L depends on); holding the
            state is wrong (the derivatives of state and step differ by more than 0.5 %).

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x, h): return ((p - x) ** 2).sum() + h["l2"] * (p**2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 200
    >>> opt = hft.sgd(lr=0.1)
    >>> _, grads, (p, _) = hft.hypergradient(
    ...     opt, loss, lambda p: p.sum(), w, data, over="loss", strategy=hft.Implicit(iterations=100),
    ...     hparams={"loss": {"l2": torch.tensor(1.0, dtype=torch.float64)}},
    ... )
    >>> round(grads["loss"]["l2"].item(), 6)            # p = 1 / (1 + l2)
    -0.25
    """

    solver: Solver = "neumann"
    iterations: int = 20
    damping: float = 0.0
    tolerance: float | None = None
    batches: int = 1
    report: Callable[[Solved], None] | None = None

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, tuple(SOLVERS))
        check_count("iterations", self.iterations, "products")
        check_count("batches", self.batches, "batches")
        check_number("damping", self.damping, Domain(0.0, float("inf"), open_high=True))
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, Domain(0.0, float("inf")))
        if self.report is not None and not callable(self.report):
            raise TypeError(f"report must be a function of one argument, got {shown(self.report)}")

    @property
    def stepwise(self) -> bool:
        return self.batches == 1

    @property
    def constant_start(self) -> bool:
        return True

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        self._check(inputs)
        needs = {"differentiates_whole_gradient": True}
        return through_node(Method("Implicit", self._back, self._train, wants_end=True, needs=needs), problem, inputs)

    def _check(self, inputs: TrainInputs) -> None:
        if len(inputs.batches) < self.batches:
            raise ValueError(f"there are {len(inputs.batches)} steps, fewer than batches = {self.batches}")

    def _train(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        given = inputs
        if not under_transform():  # with leaves, so that a number that is taken of an hparam is seen
            given = inputs._replace(hparams=detached_leaves(inputs.hparams, problem.needs_grad.hparams)[1])
        replay = Replay()
        return problem.loop(given), replay

    def _back(self, problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        inputs, end, replay = run
        assert end is not None
        end = end._replace(state=detached(end.state))  # held, in derivatives of any order
        if any(bool(values_of(v).any()) for v in present(cotangents.state)):
            raise ValueError(
                "Implicit has no derivative of the optimizer's state at the end: it holds the state and "
                "differentiates the params; take hft.Unroll()"
            )
        system, point = self.system(problem, inputs, end, replay)
        params = [tree.working(x) for x in point[0]]
        slope = [v.to(x) for v, x in zip(present(cotangents.params), params, strict=True)]
        x = solution(system, slope, *point)
        values, back = at_point(system, point)
        distance, state = values[: len(x)], values[len(x) :]
        converged = self._judge_training(x, slope, params, distance)
        direct = [*back([*(-v for v in x), *map(torch.zeros_like, state)])]
        _, to_hparams, to_last, to_state = direct
        if is_checked(self.solver, point[0], state, replay):
            through_state = [*back([*map(torch.zeros_like, x), *to_state])]
            del back  # and its graph
            if converged:
                # What training has left to go, or rounding, shows in products that should be 0.
                rounding = torch.finfo(x[0].dtype).eps * (dot(x, x) * dot(params, params)).sqrt()
                small = 2 * dot(x, distance).abs() + rounding
                wanted = {id(number) for number in select_floats(inputs.hparams, problem.needs_grad.hparams)}
                asked = [id(number) in wanted for number in point[1]]
                asked += [problem.needs_grad.batches is not False] * len(point[2])
                del values, distance, state, x, slope
                self._judge_state(mismatch(system, point, direct, through_state, small, asked))
        batches = None
        if problem.needs_grad.batches is not False:
            before, last = inputs.batches[: -self.batches], inputs.batches[-self.batches :]
            batches = [*cotangents_of(before, [], False), *cotangents_of(last, to_last)]
        return TrainInputs(cotangents_of(inputs.hparams, to_hparams), None, None, batches)

    def costs(self, problem: InnerProblem, inputs: TrainInputs) -> Costs:
        self._check(inputs)
        count, few = len(inputs.batches), self.batches
        entries = sum(x.numel() for x in floats(inputs.params))
        # Where it is no bound, the residual takes one product more.
        iterations = {"dense": entries + 1, "identity": 0, "cg": self.iterations + 1}.get(self.solver, self.iterations)
        checked = is_checked(self.solver, floats(inputs.params), floats(inputs.state), Replay())
        steps, beginning = few_steps(problem, inputs, max(few, STEADY))

        @torch.no_grad()
        def trial() -> None:  # a few steps, and a few iterations of the solver, which nobody judges
            replay, end = Replay(), steps.loop(beginning)
            slope = [torch.ones_like(tree.working(x)) for x in floats(end.params)]
            system, point = self.system(steps, beginning, end, replay)
            product, solver = system.product(point[0], *point[1:]), SOLVERS[self.solver]
            x = solver(product, slope, min(iterations, STEADY), lambda r: dot(r, r), lambda _: False).x
            del product
            values, back = at_point(system, point)
            state = values[len(x) :]
            direct = back([*(-v for v in x), *map(torch.zeros_like, state)])
            if checked:
                back([*map(torch.zeros_like, x), *direct[3]])

        words = f"{few} steps at the end, in one graph" if few > 1 else "one step at the end"
        # The graph of the last steps is made twice, for the solver and for the hparams.
        return Costs(count + 2 * few, few * (iterations + 1 + checked), words, trial)

    def system(
        self, problem: InnerProblem, inputs: TrainInputs, end: TrainOutputs, replay: Replay
    ) -> tuple[System, list[Vector]]:
        """The linear system at the end of training, and the point: params, hparams, batches, state, constants."""
        count = len(inputs.batches)
        last = [inputs.batches[k] for k in range(count - self.batches, count)]
        losses: list[Tensor] = []  # of F, each time that it is computed

        def residual(p: Vector, h: Vector, b: Vector, s: Vector, rest: Vector) -> Vector:
            """F, the change by a step averaged over the last batches, and the state after it."""
            whole, constants = iter((*p, *h, *b, *s)), iter(rest)
            new = [next(whole) if is_float(x) else next(constants) if isinstance(x, Tensor) else x for x in rows]
            params, hparams, batches, state = rebuild(new)
            # The same random numbers each time: F is one function.
            steps = replay.again(lambda: [problem.step(params, state, x, hparams) for x in batches])
            found = values_of(torch.stack([loss.detach() for _, _, loss in steps]))
            losses.append(found)
            refuse_other_losses(losses[0], found, steps=range(count - self.batches, count))
            moved = [floats(step[:2]) for step in steps]
            means: list[Any] = [
                sum(tree.working(x) for x in column) / len(moved) for column in zip(*moved, strict=True)
            ]
            return [*(tree.working(x) - mean for x, mean in zip(p, means, strict=False)), *means[len(p) :]]

        parts = (end.params, inputs.hparams, last, end.state)
        rows, rebuild = tree.flatten(parts)
        point = [floats(part) for part in parts]
        point.append([x for x in rows if isinstance(x, Tensor) and not is_float(x)])
        return self.system_of(residual), point

    def system_of(self, function: Callable[..., Vector], transposed: bool = False) -> System:
        """That with the derivative of a function in its first argument."""
        return System(function, self.solver, self.iterations, self.tolerance, self.damping, self._judge, transposed)

    def _judge(self, found: Solved) -> None:
        if self.report is not None:
            self.report(found)
        residual = values_of(found.residual).max().item()
        small = tolerance_of(found.residual, self.tolerance)
        # Conjugate gradients minimise another norm: on the way their residual may be larger than at the start.
        if not residual <= (1e3 if self.solver == "cg" else 10.0):
            raise diverges(self.solver, residual)
        if residual > small:
            warn_caller(
                f"Implicit, solver {self.solver!r}, has not converged: residual {residual:.2g} of the right-hand side "
                f"after {found.iterations} iterations, tolerance {small:.2g}; take more, or accept it by tolerance="
            )

    def _judge_training(self, x: Vector, slope: Vector, params: Vector, distance: Vector) -> bool:
        # Without what L does not depend on, such as the counts among a module's buffers.
        held = [x * (v != 0).any() for x, v in zip(params, slope, strict=True)]
        size = (dot(slope, slope) * dot(held, held)).sqrt()
        if not bool(values_of(size).isfinite().all()):
            return False
        ahead = values_of(dot(x, distance).abs() / torch.where(size == 0, 1.0, size)).max().item()
        if self.solver != "identity" and ahead > 1e-2:
            warn_caller(
                f"Implicit: training has not converged: the rest of the way would change <dL/dp, p> by {ahead:.2g} of "
                "|dL/dp| |p|; train longer, with a higher learning rate, or on larger batches (or batches=n)"
            )
        return ahead <= 1e-2

    def _judge_state(self, found: float) -> None:
        if found > LIMIT:
            warn_caller(
                "Implicit holds the optimizer's state, but the derivatives of the state and of the step do not fit "
                f"each other (a mismatch of {found:.2g}), so the result is wrong. What is decayed or pulled must reach "
                "the state too: put it into the loss, or take weight_decay of hft.sgd or hft.adam. With lookahead or "
                "schedule-free take hft.Unroll(). Noisy batches may be another cause: batches=n"
            )
