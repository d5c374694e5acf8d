"""The first steps of a strategy, run to be measured: the bytes of a peak, the seconds of a step."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import tree
from .checkpoints import Point
from .eager import EagerWalk
from .forward import Forward
from .held_state import is_checked
from .implicit import Implicit
from .leaves import Row, chosen, floats, refill
from .linear import SOLVERS, at_point, dot
from .memory import Meter
from .mutation import refuse_mutation
from .rng import Recorder
from .steps import Steps
from .strategy import Start, Trained
from .zero_order import ZeroOrder

Key = TypeVar("Key", bound=Hashable)


class Line(NamedTuple):
    """Seconds as a function of a number of steps."""

    first: float
    more: float  # each other one

    def at(self, count: int) -> float:
        return self.first + (count - 1) * self.more


class Beginning(NamedTuple):
    """What a run starts with, and its first batches, which come round again where more are asked for."""

    steps: Steps
    start: Start

    def of(self, count: int) -> tuple[Steps, Start]:
        """So many steps."""
        given, wanted = self.start.batches, self.steps.wanted.batches
        places = [k % len(given) for k in range(count)]
        mask = [wanted[k] for k in places] if isinstance(wanted, list) else False
        asked = self.steps.wanted._replace(batches=mask)
        return replace(self.steps, wanted=asked), self.start._replace(batches=[given[k] for k in places])

    def loop(self, count: int) -> None:
        """A plain training of so many steps."""
        steps, start = self.of(count)
        steps.loop(start)


def cotangents_of_end(end: Trained) -> tuple[list[Tensor], list[Tensor]]:
    """What the backward pass of an outer loss hands over: tensors for params; zeros for state, which take no memory."""
    params, state = floats(end.params), floats(end.state)
    return [torch.ones_like(x) for x in params], [x.new_zeros(()).expand(x.shape) for x in state]


def forward_trial(strategy: Forward, beginning: Beginning, tangents: int, loop: bool) -> Callable[[int], None]:
    """So many steps with so many tangents; ``loop``: where a plain training came before."""

    def trial(count: int) -> None:
        steps, start = beginning.of(count)
        end = steps.loop(start) if loop else None
        given = None if end is None else cotangents_of_end(end)
        carried = strategy.carry(steps, start, 0, tangents)
        given = cotangents_of_end(carried[0]) if given is None else given

    return trial


def implicit_trial(strategy: Implicit, beginning: Beginning) -> Callable[[int, int], None]:
    """So many steps, and so many iterations of the solver, which nobody judges."""

    def trial(count: int, iterations: int) -> None:
        steps, start = beginning.of(max(count, strategy.batches))
        recorder, end = Recorder(), steps.loop(start)
        slope, of_state = cotangents_of_end(end)
        system, point = strategy.system(steps, start, end, recorder, recorder.now())
        slope = [v.to(tree.working(x)) for v, x in zip(slope, point[0], strict=True)]
        product = system.product(point[0], *point[1:])
        x = SOLVERS[strategy.solver](product, slope, iterations, lambda r: dot(r, r), lambda _: False).x
        del product
        values, back = at_point(system, point)
        state = values[len(x) :]
        direct = back([*(-v for v in x), *map(torch.zeros_like, state)])
        if is_checked(strategy.solver, point[0], state, recorder):
            back([*map(torch.zeros_like, x), *direct[3]])
        del of_state

    return trial


def zero_order_trial(strategy: ZeroOrder, beginning: Beginning) -> Callable[[int], bool]:
    """So many steps, plain and from all points; tells whether these ran together."""

    def trial(count: int) -> bool:
        steps, start = beginning.of(count)
        recorder = Recorder()
        with refuse_mutation(collectives=True):  # as in hypergradient
            end = replace(steps, derived=False, looked_at=False).loop(start)
        pairs = list(zip(start, steps.wanted._replace(state=False), strict=True))
        x = [u for part, mask in pairs for u in chosen(part, mask)]

        def along(point: list[Tensor]) -> Tensor:
            rest = iter(point)
            filled = (refill(part, [next(rest) for _ in chosen(part, mask)], mask) for part, mask in pairs)
            rows = [tree.working(y) for y in floats(steps.loop(Start(*filled)).params)]
            return dot(rows, rows)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = strategy.smoothed(along, x, 0, recorder, recorder.now())
        del end, found
        return not any("one after the other" in str(warning.message) for warning in caught)

    return trial


def unroll_laps(walk: EagerWalk, start: Start, k: int, point: Point) -> dict[str, Callable[[], Any]]:
    """What a run is made of, each by step k from a point: steps forward, made again, and gone back through."""
    params, state = point.params, point.state
    back_p: Row = [torch.zeros_like(tree.working(x)) for x in floats(params)]
    back_s: Row = [torch.zeros_like(tree.working(x)) for x in floats(state)]
    middle, edge = walk.beginning(k - 1), walk.beginning(k)

    def forward(which: EagerWalk, keep: bool) -> Callable[[], Any]:
        return lambda: which.forward(k, params, state, keep)

    def back(which: EagerWalk) -> Callable[[], Any]:
        return lambda: which.back(k, point, back_p, back_s)

    return {
        "forward": forward(middle, False),
        "step": lambda: middle.step(k, params, state),
        "back, again": back(middle),
        "forward, kept": forward(middle, True),
        "back, kept": back(middle),
        "forward, first": forward(edge, False),
        "back, first": back(edge),
    }


def peak_of_trial(kind: str, trial: Callable[[], Any]) -> int:
    """The most bytes of tensors on devices of a kind that live at once."""
    with Meter(kind) as meter:
        trial()
        return meter.peak()


def medians(actions: Mapping[Key, Callable[[], Any]], seconds: float = 0.6, least: int = 3) -> dict[Key, float]:
    """Seconds of each action: all are done one after the other, again and again, for about so long."""
    found: dict[Key, list[float]] = {name: [] for name in actions}
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    begin = time.perf_counter()
    while len(next(iter(found.values()))) < least or time.perf_counter() - begin < seconds:
        for name, action in actions.items():
            wait()
            now = time.perf_counter()
            action()
            wait()
            found[name].append(time.perf_counter() - now)
    return {name: statistics.median(times) for name, times in found.items()}


def lines(trials: Mapping[str, Callable[[int], Any]], many: int = 5) -> dict[str, Line]:
    """By one step and by ``many``."""
    actions = {(name, n): partial(trial, n) for name, trial in trials.items() for n in (1, many)}
    seconds = medians(actions)
    rows = {name: (seconds[name, 1], seconds[name, many]) for name in trials}
    return {name: Line(few, max(0.0, (more - few) / (many - 1))) for name, (few, more) in rows.items()}
