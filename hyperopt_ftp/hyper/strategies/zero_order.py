"""Evolution strategies: a derivative from differences of whole trainings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ... import tree
from ...calls import callers_level, check_count, check_flag, explained
from ...dtensors import like
from ...hparams import Domain, check_number
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import combine, cotangents_of, floats, present, select_floats
from ..core.problem import InnerProblem
from ..core.replay import Replay, RngState
from ..core.strategy import Strategy
from ..core.transforms import values_of
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
    needs no derivative (an error rate works). In :func:`train`, f is ``<cotangent, (params, state)>``. Use it for few
    numbers, for losses without second derivatives, and for long runs whose exact derivative explodes (arXiv
    1810.10180).

    Args:
        samples: N. Each costs two trainings, or one if not antithetic.
        sigma: standard deviation, in units of x. A large one leaves the domain: a negative lr is not caught.
        antithetic: use pairs of opposite points, in which f(x) and all even terms cancel.
        generator: CPU generator of the random directions. ``None``: torch's default one.

    All trainings draw the same random numbers (dropout). They run together by ``vmap``.

    Raises:
        ValueError: samples below 1, a sigma that is not above 0.
        TypeError: a generator of another kind.
        RuntimeError: losses that write in place, or that change from call to call.

    Warns:
        UserWarning: vmap cannot take the loss, so the samples run one after the other.

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

    takes_shards = False
    needs_values_only = True
    twice = False

    def __post_init__(self) -> None:
        check_count("samples", self.samples, "samples")
        check_flag("antithetic", self.antithetic)
        check_number("sigma", self.sigma, Domain(0.0, float("inf"), open_high=True))
        if self.sigma == 0:
            raise ValueError("sigma must be above 0, got 0: there would be no difference to see")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(self.generator).__name__}")

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.generator is None else (self.generator,)

    def run(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        replay = Replay()
        rng, end = replay.now(), problem.loop(inputs)
        (seed,) = problem.agreed([self.draw()])
        return end, (inputs, replay, rng, seed)

    def pullback(self, problem: InnerProblem, residual: Any, cotangents: TrainOutputs) -> TrainInputs:
        inputs, replay, rng, seed = residual
        asked = problem.needs_grad
        given = [*present(cotangents.params), *present(cotangents.state)]

        def along(point: list[Tensor]) -> Tensor:
            end = problem.loop(combine(inputs, point, asked))
            outputs = (*floats(end.params), *floats(end.state))
            return dot([tree.working(y) for y in outputs], [tree.working(v) for v in given])

        found = self.from_values(along, select_floats(inputs, asked), seed, replay, rng)
        return cotangents_of(inputs, found, asked)

    def from_values(
        self, function: Function, x: list[Tensor], seed: int, replay: Replay, rng: RngState
    ) -> list[Tensor]:
        """The estimate at x for a function that gives a scalar, with the random numbers of that state."""
        directions = [self._direction(x, seed + i) for i in range(self.samples)]
        points = [[u + self.sigma * e for u, e in zip(x, row, strict=True)] for row in directions]
        if self.antithetic:
            points += [[u - self.sigma * e for u, e in zip(x, row, strict=True)] for row in directions]
        else:
            points.append(x)
        values = _everywhere(function, points, replay, rng)
        n = self.samples
        slopes = (values[:n] - values[n:]) / (self.sigma * (2 if self.antithetic else 1) * n)
        columns = zip(*directions, strict=True)
        return [
            torch.stack([s.to(e) * e for s, e in zip(slopes, column, strict=True)]).sum(0).to(u)
            for u, column in zip(x, columns, strict=True)
        ]

    def draw(self) -> int:
        with temporarily_clear_interpreter_stack():  # one draw, also under vmap
            return int(torch.randint(2**62, (), generator=self.generator))

    def _direction(self, x: list[Tensor], seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        with temporarily_clear_interpreter_stack():
            rows = [torch.randn(u.shape, generator=generator, dtype=torch.float64) for u in x]
        return [like(e.to(tree.working(u).dtype).to(u.device), u) for u, e in zip(x, rows, strict=True)]


def _everywhere(function: Function, points: list[list[Tensor]], replay: Replay, rng: RngState) -> Tensor:
    """Values at all points, by vmap, or one after the other if vmap fails."""

    def together() -> Tensor:
        columns = [torch.stack(column) for column in zip(*points, strict=True)]
        return torch.func.vmap(function, randomness="same")(columns)

    try:
        return replay.run(rng, together)
    except Exception as error:  # of any kind: the other processes of data_parallel go on one after the other too
        values = torch.stack([replay.run(rng, lambda p=point: function(p)) for point in points])
        twice = replay.run(rng, lambda: function(points[0]))
        first, again = values_of(values)[0].double(), values_of(twice).double()
        slack = torch.finfo(twice.dtype).eps ** 0.75 if twice.is_floating_point() else 0.0  # a count of errors
        if not torch.allclose(first, again, rtol=slack, atol=0.0, equal_nan=True):
            raise RuntimeError(
                "train_loss, or the outer loss, is another function each time it is called: torch's default random "
                "generators are restored, but not one of its own, NumPy's or Python's; draw such numbers beforehand"
            ) from error
        warnings.warn(
            f"ZeroOrder trains its samples one after the other, since vmap cannot take them: {str(error)[:200]}",
            UserWarning,
            stacklevel=callers_level(),
        )
        return values
