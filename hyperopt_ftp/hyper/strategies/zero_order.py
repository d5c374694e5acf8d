"""Evolution strategies: a derivative from differences of whole trainings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import check_count, check_flag, explained, warn_caller
from ...dtensors import in_layout_of
from ...hparams import Domain, check_number
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import combine, cotangents_of, floats, present, select_floats
from ..core.memory import trial_peak
from ..core.node import Method, Run, through_node
from ..core.problem import InnerProblem
from ..core.replay import Replay
from ..core.strategy import Costs, Objective, PlainSteps, Strategy, few_steps
from ..core.torch_private import outside_transforms, under_transform, values_of
from ..core.vjp import dot

Function = Callable[[list[Tensor]], Tensor]


@explained("ZeroOrder(samples=16, sigma=0.01)")
@dataclass(frozen=True)
class ZeroOrder(Strategy):
    """The gradient of a smoothed function, from its values at random points (evolution strategies, arXiv 1703.03864).

    With x the vector of all numbers that a derivative is asked for, and N = ``samples`` draws e of normal numbers::

        grad = 1/N sum_i  e_i (f(x + sigma e_i) - f(x - sigma e_i)) / (2 sigma)      antithetic
        grad = 1/N sum_i  e_i (f(x + sigma e_i) - f(x)) / sigma                      else

    This is an unbiased estimate of the gradient of ``E f(x + sigma e)``, with an error of about
    ``sqrt(numbers / samples)``. In :func:`hypergradient` and :func:`bilevel`, f is the outer loss after training, which
    needs no derivative (an error rate works). In :func:`train`, f is ``<cotangent, (params, state)>``. For few numbers,
    losses without second derivatives, and long runs whose exact derivative explodes (arXiv 1810.10180).

    Args:
        samples: N. Each costs two trainings, or one if not antithetic.
        sigma: standard deviation, in units of x. A large one leaves the domain: a negative lr is not caught. A small
            one is lost in the rounding of 16-bit tensors.
        antithetic: use pairs of opposite points, in which f(x) and all even terms cancel.
        generator: CPU generator of the random directions. ``None``: torch's default one.

    All trainings draw the same random numbers (dropout). They run together by ``vmap``, or with a warning one after the
    other.

    Raises:
        ValueError, TypeError: samples below 1, a sigma that is not above 0, a generator of another kind.
        RuntimeError: losses that write in place, or that change from call to call.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> strategy = hft.ZeroOrder(1000, sigma=0.01, generator=torch.Generator().manual_seed(0))
    >>> _, grads, _ = hft.hypergradient(
    ...     hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr", strategy=strategy
    ... )
    >>> bool((grads["lr"] + 3.93216).abs() < 0.4)       # -3.93216 is exact
    True
    """

    samples: int
    sigma: float
    antithetic: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_count("samples", self.samples, "samples")
        check_flag("antithetic", self.antithetic)
        check_number("sigma", self.sigma, Domain(0.0, float("inf"), open_high=True))
        if self.sigma == 0:
            raise ValueError("sigma must be above 0, got 0: there would be no difference to see")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(self.generator).__name__}")

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        return through_node(
            Method("ZeroOrder", self._back, self._train, needs={"constant_gradient": True}), problem, inputs
        )

    def value_and_grad(
        self, objective: Objective, leaves: list[Tensor], agreed: Callable[[Sequence[int]], list[int]]
    ) -> tuple[Tensor, list[Tensor], TrainOutputs]:
        """The objective's value, and the derivative of the objective smoothed: it needs none itself."""
        replay, plain = Replay(), PlainSteps()
        # Under a transform somebody may differentiate the value, and the estimate.
        with nullcontext() if under_transform() else torch.no_grad():
            value, run = objective(leaves, plain)
            (seed,) = agreed([self._draw()])
            found = self.smoothed(lambda x: objective(x, plain)[0], leaves, seed, replay)
        return value, found, run

    def costs(self, problem: InnerProblem, inputs: TrainInputs) -> Costs:
        count, points = len(inputs.batches), 2 * self.samples if self.antithetic else self.samples + 1
        steps, few = few_steps(problem, inputs)

        def along(point: list[Tensor]) -> Tensor:
            rows = floats(steps.loop(combine(few, point, steps.needs_grad)).params)
            return dot(rows, rows)

        def trial() -> Any:
            replay, end = Replay(), steps.loop(few)
            return end, self.smoothed(along, select_floats(few, steps.needs_grad), 0, replay)

        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            memory = trial_peak(inputs.params, trial)
        if not any("one after the other" in str(warning.message) for warning in caught):
            return Costs(count * (1 + points), 0, f"{points} trainings at once", memory=memory)
        return Costs(count * (2 + points), 0, "one training at a time", memory=memory)  # one more, as a check

    def _train(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        if problem.asks_batches:
            problem.refuse_shards("ZeroOrder")
        replay, end = Replay(), problem.loop(inputs)
        (seed,) = problem.agreed([self._draw()])
        return end, (replay, seed)

    def _back(self, problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        inputs, asked = run.inputs, problem.needs_grad
        given = [*present(cotangents.params), *present(cotangents.state)]

        def along(point: list[Tensor]) -> Tensor:
            end = problem.loop(combine(inputs, point, asked))
            outputs = (*floats(end.params), *floats(end.state))
            return dot([tree.working(y) for y in outputs], [tree.working(v) for v in given])

        replay, seed = run.note
        found = self.smoothed(along, select_floats(inputs, asked), seed, replay)
        return cotangents_of(inputs, found, asked)

    def smoothed(self, function: Function, x: list[Tensor], seed: int, replay: Replay) -> list[Tensor]:
        """The derivative at x of a smoothed function that gives a scalar, with the random numbers of that moment."""
        directions = [self._direction(x, seed + i) for i in range(self.samples)]
        points = [[(u + self.sigma * e).to(u) for u, e in zip(x, row, strict=True)] for row in directions]
        if self.antithetic:
            points += [[(u - self.sigma * e).to(u) for u, e in zip(x, row, strict=True)] for row in directions]
        else:
            points.append(x)
        values = _everywhere(function, points, replay)
        n = self.samples
        slopes = (values[:n] - values[n:]) / (self.sigma * (2 if self.antithetic else 1) * n)
        columns = zip(*directions, strict=True)
        return [
            torch.stack([s.to(e) * e for s, e in zip(slopes, column, strict=True)]).sum(0).to(u)
            for u, column in zip(x, columns, strict=True)
        ]

    def _draw(self) -> int:
        with outside_transforms():  # one draw, also under vmap
            return int(torch.randint(2**62, (), generator=self.generator))

    def _direction(self, x: list[Tensor], seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        with outside_transforms():
            rows = [torch.randn(u.shape, generator=generator, dtype=torch.float64) for u in x]
        return [in_layout_of(e.to(tree.working(u).dtype).to(u.device), u) for u, e in zip(x, rows, strict=True)]


def _everywhere(function: Function, points: list[list[Tensor]], replay: Replay) -> Tensor:
    """Values at all points, by vmap, or one after the other if vmap fails."""

    def together() -> Tensor:
        columns = [torch.stack(column) for column in zip(*points, strict=True)]
        return torch.func.vmap(function, randomness="same")(columns)

    try:
        return replay.again(together)
    except Exception as error:  # of any kind: the other processes of data_parallel go on one after the other too
        values = torch.stack([replay.again(lambda p=point: function(p)) for point in points])
        twice = replay.again(lambda: function(points[0]))
        first, again = values_of(values)[0].double(), values_of(twice).double()
        slack = torch.finfo(twice.dtype).eps ** 0.75 if twice.is_floating_point() else 0.0  # a count of errors
        if not torch.allclose(first, again, rtol=slack, atol=0.0, equal_nan=True):
            raise RuntimeError(
                "train_loss, or the outer loss, is another function each time it is called: torch's default random "
                "generators are restored, but not one of its own, NumPy's or Python's; draw such numbers beforehand"
            ) from error
        warn_caller(
            f"ZeroOrder trains its samples one after the other, since vmap cannot take them: {str(error)[:200]}"
        )
        return values
