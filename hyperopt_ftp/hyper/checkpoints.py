"""Where steps began: kept for every n-th, computed again between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import tree
from ..types import Params, State
from .rng import Recorder, RngState, refuse_other_losses
from .steps import Steps, is_float, refill
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

    def __init__(self, steps: Steps, start: Start, every: int, offload: bool, losses: list[Tensor]) -> None:
        self._steps, self._start, self._every, self._offload = steps, start, every, offload
        self._kept: dict[int, Point] = {}
        self._between: dict[int, Point] = {}  # of one stretch between two that are kept
        self._losses = losses  # by step, as they were the first time
        self._recorder = Recorder()

    def visit(self, k: int, params: Params, state: State) -> None:
        """Step k begins here, the first time."""
        if not self._kept or (k - next(iter(self._kept))) % self._every == 0:
            self._kept[k] = self._stored(params, state)

    def at(self, k: int) -> Point:
        """Where step k began."""
        if k not in self._kept and k not in self._between:
            self._between.clear()
            self._run_to(k, max(j for j in self._kept if j < k))
        return self._loaded(self._kept.get(k) or self._between[k])

    def again(self, k: int, function: Callable[[], T]) -> T:
        """``function()`` with the random numbers that step k had."""
        return self._recorder.again((self._kept.get(k) or self._between[k]).rng, function)

    def compare(self, k: int, loss: Tensor) -> None:
        """Raise unless step k has the training loss that it had the first time."""
        refuse_other_losses(self._losses[k], loss, k)

    def _run_to(self, k: int, base: int) -> None:
        params, state, _ = self._loaded(self._kept[base])

        def run() -> None:
            nonlocal params, state
            for j in range(base, k):
                found = self._steps.gradient(params, self._start.batches[j], self._start.hparams, again=True)
                self.compare(j, found.loss)
                with torch.no_grad():
                    grads = refill(params, found.grads)
                    params, state = self._steps.update(grads, state, params, self._start.hparams)
                self._between[j + 1] = self._stored(params, state)

        self.again(base, run)

    def _stored(self, params: Params, state: State) -> Point:
        if self._offload:
            params, state = (tree.map_tree(lambda x: x.cpu(), values) for values in (params, state))
        return Point(params, state, self._recorder.now())

    def _loaded(self, point: Point) -> Point:
        if not self._offload:
            return point
        back = _like(self._start)
        return Point(tree.map_tree(back, point.params), tree.map_tree(back, point.state), point.rng)


def _like(start: Start) -> Callable[[Any], Any]:
    device = next((x.device for x in tree.leaves(start.params)), torch.device("cpu"))
    # Step counts are made on the CPU and stay there.
    return lambda x: x.to(device) if is_float(x) else x
