"""Where steps began: points that are kept, and points that are recomputed from those."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ... import tree
from ...hparams import concrete
from ...types import Offload, Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import floats
from ..core.replay import Replay, RngState
from ..core.torch_private import pins
from .plans import Plan, kept


class Steps(Protocol):
    """What makes a step again."""

    def gradient_again(self, k: int, params: Params) -> Params: ...

    def update_again(self, grads: Params, params: Params, state: State) -> tuple[Params, State]: ...


def links_pay(inputs: TrainInputs) -> bool:
    """Whether a gradient is so much smaller than a point that updates are made again for it."""
    params, state = (sum(x.numel() for x in floats(part)) for part in (inputs.params, inputs.state))
    return 2 * state >= params


class Checkpoint(NamedTuple):
    """Where a step began."""

    params: Params
    state: State
    rng: RngState


class Link(NamedTuple):
    """A point as the gradient of the step before it: an update, which costs little, makes one point of the other."""

    grads: Params
    rng: RngState  # before the update


class Filed:
    """Some values, whose tensors are in a file of the temporary directory as long as this object lives."""

    def __init__(self, values: Sequence[Any]) -> None:
        # Of a view its own entries alone: torch writes the whole memory behind it.
        whole = [x for x in values if isinstance(x, Tensor)]
        whole = [x if x.untyped_storage().nbytes() == x.nbytes else x.clone() for x in whole]
        self._others = [None if isinstance(x, Tensor) else x for x in values]
        self._places = [i for i, x in enumerate(values) if isinstance(x, Tensor)]
        try:
            handle, self._path = tempfile.mkstemp(prefix="hyperopt_ftp-", suffix=".pt")
            os.close(handle)
            weakref.finalize(self, os.unlink, self._path)
            torch.save(whole, self._path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second one where a disk is full
            raise RuntimeError(
                f'offload="disk": a point cannot be written to {tempfile.gettempdir()} ({error}); TMPDIR in the '
                'environment names another directory. Or keep fewer points (checkpoint="sqrt"), or take offload=True'
            ) from error

    def load(self) -> list[Any]:
        values = self._others.copy()
        for i, x in zip(self._places, torch.load(self._path, weights_only=True), strict=True):
            values[i] = x
        return values


class Checkpoints:
    """Where the steps from ``first`` on began: points kept by a plan, with ``offload`` elsewhere.

    The backward pass goes from the last step to the first, and uses each point once. A point that was not kept is
    recomputed from the last one before it; that run keeps points by the same plan.
    """

    def __init__(self, inputs: TrainInputs, plan: Plan, first: int, offload: Offload) -> None:
        self._inputs, self._plan, self._offload = inputs, plan, offload
        self._kept: dict[int, Checkpoint | Link] = {}  # in the order of their steps
        self._replay = Replay()
        self._intend(kept(plan.parts, first, len(inputs.batches)))

    def for_retained_backward(self) -> Checkpoints:
        """A copy for a backward pass that may run again."""
        other = copy(self)
        other._kept = dict(self._kept)
        return other

    def visit(self, k: int, params: Params, state: State, rng: RngState | None = None) -> None:
        """``rng``: the random state where step k begins; ``None``: the present one."""
        if k in self._whole:
            self._kept[k] = self.stored(Checkpoint(params, state, self._replay.now() if rng is None else rng))

    def links(self, k: int) -> bool:
        """Whether :meth:`link` keeps the gradient of step k."""
        return k + 1 in self._linked

    def link(self, k: int, grads: Params, rng: RngState) -> None:
        self._kept[k + 1] = self.stored(Link(grads, rng))

    def at(self, k: int, steps: Steps) -> Checkpoint:
        """Where step k began, which is not kept any longer. Steps after it have been asked for before."""
        points = [*self._kept]
        if points[-1] < k:
            points += kept(self._plan.parts, points[-1], k + 1)[1:]
        self._intend(points)
        whole = max(j for j in points if j not in self._linked and j in self._kept)
        begin: Any = self._kept[whole]
        found = begin = self._loaded(begin)
        if whole < k:
            found = self._replay.run(begin.rng, lambda: self._run(whole, k, begin, steps))
        self._kept.pop(k, None)
        return found

    def _run(self, base: int, k: int, begin: Checkpoint, steps: Steps) -> Checkpoint:
        params, state, _ = begin
        for j in range(base, k):
            there = self._kept.get(j + 1)
            if isinstance(there, Link):
                grads, rng = self._loaded(there)
                self._replay.rewind(rng)
            else:
                grads = steps.gradient_again(j, params)
                if j + 1 < k and self.links(j):
                    self.link(j, grads, self._replay.now())
            params, state = steps.update_again(grads, params, state)
            if j + 1 < k:
                self.visit(j + 1, params, state)
        return Checkpoint(params, state, self._replay.now())

    def _intend(self, points: Sequence[int]) -> None:
        self._linked = self._plan.linked(points)
        self._whole = {*points} - self._linked

    def stored(self, point: Any) -> Any:
        if not self._offload:
            return point
        *parts, rng = point
        leaves = tree.leaves(parts)
        if self._offload == "disk" and all(concrete(x) for x in leaves if isinstance(x, Tensor)):
            return type(point)(Filed(leaves), *[None] * (len(parts) - 1), rng)
        return type(point)(*tree.map_tree(lambda x: _moved(x, _CPU), parts), rng)

    def _loaded(self, point: Any) -> Any:
        if not self._offload:
            return point
        *parts, rng = point
        begin = [self._inputs.params, self._inputs.state][: len(parts)]
        if isinstance(parts[0], Filed):
            return type(point)(*tree.flatten(begin)[1](parts[0].load()), rng)
        return type(point)(*tree.map_tree(lambda x, y: _moved(x, getattr(y, "device", _CPU)), parts, begin), rng)


_CPU = torch.device("cpu")


def _moved(x: Any, to: torch.device) -> Any:
    """A tensor there. The host does not wait, and may not read it: it goes back on the stream that it came by."""
    return x.to(to, non_blocking=pins(x.device) or pins(to)) if isinstance(x, Tensor) else x
