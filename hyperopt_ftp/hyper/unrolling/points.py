"""Where steps began: points that are kept, and points that are recomputed from those."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...types import Params, State
from ..core.inputs import TrainInputs
from ..core.replay import Replay, RngState
from ..core.torch_private import pins
from .plans import Parts, kept

Step: TypeAlias = Callable[[int, Params, State], tuple[Params, State]]


class Checkpoint(NamedTuple):
    """Where a step began."""

    params: Params
    state: State
    rng: RngState


class Checkpoints:
    """Where the steps from ``first`` on began: points kept by a plan, on the CPU with ``offload``.

    The backward pass goes from the last step to the first, and drops the points behind it. A point that was not kept is
    recomputed from the last one before it; that run keeps points by the same plan.
    """

    def __init__(self, inputs: TrainInputs, parts: Parts, first: int, offload: bool) -> None:
        self._inputs, self._parts, self._offload = inputs, parts, offload
        self._planned = set(kept(parts, first, len(inputs.batches)))
        self._kept: dict[int, Checkpoint] = {}  # in the order of their steps
        self._replay = Replay()

    def for_retained_backward(self) -> Checkpoints:
        """A copy for a backward pass that may run again."""
        other = copy(self)
        other._kept = dict(self._kept)
        return other

    def visit(self, k: int, params: Params, state: State, rng: RngState | None = None) -> None:
        """``rng``: the random state where step k begins; ``None``: the present one."""
        if k in self._planned:
            self._kept[k] = self.stored(params, state, rng)

    def at(self, k: int, step: Step) -> Checkpoint:
        """Where step k began; points after it are dropped. ``step(k, params, state)`` gives the next point."""
        while (last := next(reversed(self._kept))) > k:
            del self._kept[last]
        if last < k:
            self._run_to(k, last, step)
        return self._loaded(self._kept[k])

    def _run_to(self, k: int, base: int, step: Step) -> None:
        params, state, rng = self._loaded(self._kept[base])
        planned = set(kept(self._parts, base, k + 1))

        def run() -> None:
            nonlocal params, state
            for j in range(base, k):
                params, state = step(j, params, state)
                if j + 1 in planned:
                    self._kept[j + 1] = self.stored(params, state)

        self._replay.run(rng, run)

    def stored(self, params: Params, state: State, rng: RngState | None = None) -> Checkpoint:
        if self._offload:
            params, state = tree.map_tree(lambda x: _moved(x, _CPU), (params, state))
        return Checkpoint(params, state, self._replay.now() if rng is None else rng)

    def _loaded(self, point: Checkpoint) -> Checkpoint:
        if not self._offload:
            return point
        begin = self._inputs.params, self._inputs.state
        params, state = tree.map_tree(lambda x, y: _moved(x, getattr(y, "device", _CPU)), point[:2], begin)
        return Checkpoint(params, state, point.rng)


_CPU = torch.device("cpu")


def _moved(x: Any, to: torch.device) -> Any:
    """A tensor there. The host does not wait, and may not read it: it goes back on the stream that it came by."""
    return x.to(to, non_blocking=pins(x.device) or pins(to)) if isinstance(x, Tensor) else x
