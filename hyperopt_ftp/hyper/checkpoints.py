"""Where steps began: kept for every n-th, computed again between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import tree
from ..types import Params, State
from .leaves import refill
from .rng import Recorder, RngState, fingerprint, refuse_other_steps
from .steps import Gradient, Steps
from .strategy import Start

__all__ = ["Checkpoints", "Point"]

T = TypeVar("T")


class Point(NamedTuple):
    """Where a step began."""

    params: Params
    state: State
    rng: RngState


class Checkpoints:
    """Points of a run: every n-th step's is kept, on the CPU with ``offload``; others are found by running again."""

    def __init__(self, steps: Steps, start: Start, every: int, offload: bool) -> None:
        self._steps, self._start, self._every, self._offload = steps, start, every, offload
        self._kept: dict[int, Point] = {}
        self._prints: dict[int, Tensor] = {}  # of each step's gradient
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its print, and that of the step made again
        self._dtypes: set[torch.dtype] = set()
        self._updates: dict[int, RngState] = {}  # when each step's update began
        self._recorder = Recorder()

    def visit(self, k: int, params: Params, state: State) -> None:
        """Step k begins here, the first time."""
        if not self._kept or (k - next(iter(self._kept))) % self._every == 0:
            self._kept[k] = self._stored(params, state)

    def note(self, k: int, found: Gradient, again: bool) -> None:
        """Step k has this gradient, the first time; its update is next. ``again``: the gradient is to be made again."""
        if again:
            self._prints[k] = fingerprint(found.loss, found.grads)
        self._updates[k] = self._recorder.now()

    def at(self, k: int, between: dict[int, Point]) -> Point:
        """Where step k began; ``between`` holds the points of one stretch between two that are kept."""
        if k not in self._kept and k not in between:
            between.clear()
            self._run_to(k, max(j for j in self._kept if j < k), between)
        return self._loaded(self._kept.get(k) or between[k])

    def gradient_again(self, k: int, point: Point, function: Callable[[], Gradient]) -> Gradient:
        """``function()``, which is the gradient of step k, with the random numbers that it had."""
        found = self._recorder.again(point.rng, function)
        self._note_again(k, found)
        return found

    def update_again(self, k: int, function: Callable[[], T]) -> T:
        """``function()``, which is the update of step k, with the random numbers that it had."""
        return self._recorder.again(self._updates[k], function)

    def compare(self) -> None:
        """Raise where a step was another one when it was made again."""
        pairs, self._pairs = self._pairs, []
        if pairs:
            refuse_other_steps(pairs, max(self._dtypes, key=lambda dtype: torch.finfo(dtype).eps))

    def _note_again(self, k: int, found: Gradient) -> None:
        if k in self._prints:  # else its graph was kept, and the params after it were not
            self._pairs.append((k, self._prints[k], fingerprint(found.loss, found.grads)))
            self._dtypes.update(x.dtype for x in (found.loss, *found.grads))

    def _run_to(self, k: int, base: int, between: dict[int, Point]) -> None:
        params, state, rng = self._loaded(self._kept[base])

        def run() -> None:
            nonlocal params, state
            for j in range(base, k):
                found = self._steps.gradient(params, self._start.batches[j], self._start.hparams, again=True)
                self._note_again(j, found)
                with torch.no_grad():
                    grads = refill(params, found.grads)
                    params, state = self._steps.update(grads, state, params, self._start.hparams)
                between[j + 1] = self._stored(params, state)

        self._recorder.again(rng, run)

    def _stored(self, params: Params, state: State) -> Point:
        if self._offload:
            params, state = tree.map_tree(lambda x: x.cpu() if isinstance(x, Tensor) else x, (params, state))
        return Point(params, state, self._recorder.now())

    def _loaded(self, point: Point) -> Point:
        if not self._offload:
            return point
        params, state = _back(point.params, self._start.params), _back(point.state, self._start.state)
        return Point(params, state, point.rng)


def _back(values: Any, like: Any) -> Any:
    """Each tensor on the device of the one that training started with in its place."""
    return tree.map_tree(lambda x, y: x.to(y.device) if isinstance(x, Tensor) else x, values, like)
