"""The memory and the work of each strategy: the work is counted, the memory measured in a few steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ... import tree
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import combine, floats, select_floats
from ..core.problem import InnerProblem
from ..core.replay import Replay
from ..core.strategy import Strategy
from ..core.vjp import dot
from ..strategies.fixed_point import at_point
from ..strategies.forward import Forward
from ..strategies.held_state import is_checked
from ..strategies.implicit import Implicit
from ..strategies.solvers import SOLVERS
from ..strategies.unroll import Unroll
from ..strategies.zero_order import ZeroOrder
from ..unrolling.budget import affordable, peak_of
from ..unrolling.eager import EagerSteps
from ..unrolling.memory import Meter
from ..unrolling.probe import sizes_of
from ..unrolling.schedules import backward_schedule, with_graphs

T = TypeVar("T")

#: Steps after which one more takes no more memory.
STEADY = 3


class Estimate(NamedTuple):
    """What a hypergradient will take, without the outer loss: the result of :func:`estimate`.

    Attributes:
        memory: peak bytes of tensors on the device of the params, above what is held when training begins.
        gradients: number of gradients of the training loss (a forward and a backward pass each), recomputed steps
            included.
        products: number of products with its second derivatives (a backward pass through a gradient each); of
            ``Forward`` at most so many.
        plan: what is stored, in words.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> data = [torch.empty(1000, device="meta")] * 9
    >>> found = hft.estimate(hft.sgd(), loss, data[0], data, over="lr", strategy=hft.Unroll(checkpoint=3))
    >>> found.gradients, found.products, found.time, found.plan
    (22, 8, 38, 'the points of every n-th step, n = 3')
    """

    memory: int
    gradients: int
    products: int
    plan: str

    @property
    def time(self) -> int:
        """Of gradients and products, in units of one gradient.

        Of a product of matrices, a gradient has the product and two more; going back through these has two for each of
        the two, and the two again. So a product counts as two.
        """
        return self.gradients + 2 * self.products


def check_known(strategy: Strategy) -> None:
    if type(strategy) not in FINDERS:
        raise TypeError(
            "estimate knows what Unroll, Forward, Implicit and ZeroOrder do, got an object of the class "
            f"{type(strategy).__name__}: measure a short run of it"
        )
    if strategy.compile:
        raise ValueError(
            "compile=True: what a compiled step takes is for the compiler to choose, and a step that is run as it is "
            "written does not tell; estimate the strategy without compile, or measure a short run with it"
        )


def _unroll(strategy: Unroll, problem: InnerProblem, inputs: TrainInputs) -> Estimate:
    count = len(inputs.batches)
    first = count - (strategy.truncate or count)
    if first < 0:
        raise ValueError(f"batches has {count} steps, fewer than truncate = {strategy.truncate}")
    steps = strategy.steps(problem, inputs, first)
    assert isinstance(steps, EagerSteps)  # no program
    sizes = sizes_of(steps, inputs, first, inputs.params, inputs.state, strategy.offload)
    plan = strategy.planned(count - first)
    if strategy.memory is not None:
        plan = affordable(strategy.memory, sizes)[0]
    dropped = strategy.chooses and plan.graphs > 0 and not steps.small(inputs.params, plan.graphs)
    if dropped:
        plan = with_graphs(plan.graphs, 0)
    left, probed = count - first, strategy.memory is not None  # a step is made once or twice more, to be measured
    again = sum(made for _, _, made in backward_schedule(plan.parts, 0, left))  # on the way to a point
    gradients = count + again + max(0, left - plan.graphs) + probed * sizes.probes
    products = left - (not steps.needs_hvp(first)) + probed
    return Estimate(peak_of(sizes, plan), gradients, products, plan.words)


def _forward(strategy: Forward, problem: InnerProblem, inputs: TrainInputs) -> Estimate:
    count, asked = len(inputs.batches), problem.needs_grad
    tangents = sum(x.numel() for x in select_floats(inputs, asked))
    size = min(strategy.chunk or tangents, tangents)
    chunks = -(-tangents // size)
    loop = chunks > 1
    # The first gradient has no tangent where only the optimizer's hparams have.
    own = asked._replace(hparams={"loss": asked.hparams.get("loss", False)})
    products = tangents * (count - (not any(tree.leaves(own))))

    def trial() -> None:
        steps, beginning = _beginning(problem, inputs, min(count, STEADY))
        end = steps.loop(beginning) if loop else None
        given = None if end is None else _cotangents_of_end(end)
        carried = strategy.carry(steps, beginning, 0, size)
        given = _cotangents_of_end(carried[0]) if given is None else given

    words = f"{size} tangents at once" if size > 1 else "one tangent at a time"
    return Estimate(_peak_of(inputs, trial)[0], count * (chunks + loop), products, words)


def _implicit(strategy: Implicit, problem: InnerProblem, inputs: TrainInputs) -> Estimate:
    count, iterations = len(inputs.batches), strategy.iterations if strategy.solver != "identity" else 0
    few = strategy.batches
    if count < few:
        raise ValueError(f"there are {count} steps, fewer than batches = {few}")
    checked = is_checked(strategy.solver, floats(inputs.params), floats(inputs.state), Replay())

    def trial() -> None:  # a few steps, and a few iterations of the solver, which nobody judges
        steps, beginning = _beginning(problem, inputs, max(few, min(count, STEADY)))
        replay, end = Replay(), steps.loop(beginning)
        slope = _cotangents_of_end(end)
        system, point = strategy.system(steps, beginning, end, replay, replay.now())
        slope = [tree.working(v) for v in slope]
        product = system.product(point[0], *point[1:])
        solver = SOLVERS[strategy.solver]
        x = solver(product, slope, min(iterations, STEADY), lambda r: dot(r, r), lambda _: False).x
        del product
        values, back = at_point(system, point)
        state = values[len(x) :]
        direct = back([*(-v for v in x), *map(torch.zeros_like, state)])
        if checked:
            back([*map(torch.zeros_like, x), *direct[3]])

    words = f"{few} steps at the end, in one graph" if few > 1 else "one step at the end"
    # The graph of the last steps is made twice, for the solver and for the hparams.
    gradients, products = count + 2 * few, few * (iterations + 1 + checked)
    return Estimate(_peak_of(inputs, trial)[0], gradients, products, words)


def _zero_order(strategy: ZeroOrder, problem: InnerProblem, inputs: TrainInputs) -> Estimate:
    count = len(inputs.batches)
    points = 2 * strategy.samples if strategy.antithetic else strategy.samples + 1

    def trial() -> bool:
        """A few steps, plain and from all points; tells whether these ran together."""
        steps, beginning = _beginning(problem, inputs, min(count, STEADY))
        end, replay = steps.bare.loop(beginning), Replay()
        asked = steps.needs_grad._replace(state=tree.map_tree(lambda _: False, beginning.state))

        def along(point: list[Tensor]) -> Tensor:
            end = steps.loop(combine(beginning, point, asked))
            rows = [tree.working(y) for y in floats(end.params)]
            return dot(rows, rows)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = strategy.from_values(along, select_floats(beginning, asked), 0, replay, replay.now())
        del end, found
        return not any("one after the other" in str(warning.message) for warning in caught)

    memory, together = _peak_of(inputs, trial)
    if together:
        return Estimate(memory, count * (1 + points), 0, f"{points} trainings at once")
    return Estimate(memory, count * (2 + points), 0, "one training at a time")  # one training more, as a check


def _beginning(problem: InnerProblem, inputs: TrainInputs, count: int) -> tuple[InnerProblem, TrainInputs]:
    batches, asked = [inputs.batches[k] for k in range(count)], problem.needs_grad.batches
    mask = tree.map_tree(lambda _: False, batches) if asked is False else asked[:count]
    return replace(problem, needs_grad=problem.needs_grad._replace(batches=mask)), inputs._replace(batches=batches)


def _cotangents_of_end(end: TrainOutputs) -> list[Tensor]:
    """Cotangents from the outer loss; zeros for the state take no memory."""
    return [torch.ones_like(x) for x in floats(end.params)]


def _peak_of(inputs: TrainInputs, trial: Callable[[], T]) -> tuple[int, T]:
    """The largest number of bytes of tensors on the params' kind of device at once, and the trial's result."""
    with Meter(tree.leaves(inputs.params)[0].device.type) as meter:
        found = trial()
        return meter.peak(), found


FINDERS: dict[type, Callable[[Any, InnerProblem, TrainInputs], Estimate]] = {
    Unroll: _unroll,
    Forward: _forward,
    Implicit: _implicit,
    ZeroOrder: _zero_order,
}
