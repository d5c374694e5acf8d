"""The training loss, checked while it runs: some losses would give a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ... import tree
from ...types import Params
from ..core.leaves import floats
from ..core.problem import loss_at, no_graph
from ..core.replay import Replay
from ..core.transforms import level_of, top_level, under_transform
from .arguments import check_scalar
from .graphs import refuse_captured, refuse_once_differentiable, refuse_outer_tensors, refuse_own_backwards
from .subjects import LOSS, Captured
from .verified import Asked, Verified
from .watched_calls import watched_calls
from .writes import left_at_new_hooks, refuse_changed, refuse_other_weights, refuse_writes, storage_of, versions_of


class GuardedLoss:
    """``train_loss(params, batch[, own])``, or an error where a derivative through it would be wrong.

    The first step checks each operation, and so does any later step whose loss has another graph. All other steps check
    only for writes in place.
    """

    def __init__(self, bare: Callable[..., Tensor], verified: Verified, asked: Asked) -> None:
        self.bare: Callable[..., Tensor] = bare
        self.verified: Verified = verified
        self._asked, self._replay = asked, Replay()
        self._outside = {storage_of(x): x for x in (known() for known in verified.outside) if x is not None}

    def __call__(self, params: Params, batch: Any, *own: Any) -> Tensor:
        asked = self._asked
        if under_transform():
            loss = self._value(params, batch, *own)
            if asked.needs_grad:
                refuse_once_differentiable(loss)
            return loss
        if not asked.looked_at:
            return self._value(params, batch, *own)
        tensors = [x for x in tree.leaves((params, batch, own)) if isinstance(x, Tensor)]
        arguments = [x for x in tensors if x.requires_grad]
        graphs = self.verified.graphs.setdefault((asked.twice, len(arguments)), set())
        with refuse_outer_tensors(LOSS) if asked.inside_function else nullcontext():
            if not asked.derived or (graphs and not asked.compiled):
                rng = self._replay.now()
                # What is captured may be a tensor that the loss itself lets require grad: look.
                with suppress(Captured):
                    loss, graph = self._glanced_at(tensors, arguments, params, batch, *own)
                    if loss is not None and (graph in graphs or not asked.derived):
                        return loss
                for x in floats(batch):
                    if x.requires_grad and not any(x is argument for argument in arguments):
                        x.requires_grad_(False)  # as it was
                self._replay.rewind(rng)
            loss, graph = self._looked_at(tensors, arguments, params, batch, *own)
            graphs.add(graph)
            return loss

    def before_step(self, params: Params, batch: Any, hparams: dict[str, Any]) -> None:
        """An evaluation at the level of the step itself, where tensors of outer transforms can be detected."""
        if under_transform():
            with refuse_outer_tensors(LOSS, leaves_too=True), torch.no_grad():
                self._replay.run(self._replay.now(), lambda: loss_at(self.bare, params, batch, hparams))

    def during_gradient(self, leaves: list[Tensor]) -> AbstractContextManager[Any]:
        return refuse_other_weights(leaves) if self.verified.has_hooks else nullcontext()

    def _glanced_at(
        self, tensors: Sequence[Tensor], arguments: Sequence[Tensor], params: Params, batch: Any, *own: Any
    ) -> tuple[Tensor | None, int]:
        """The loss and its graph, with no operation looked at; reads of numbers, and hooks, leave no trace there.

        ``None`` where it sets hooks that it has not set before.
        """
        seen, derived = self.verified, self._asked.derived
        knobs = [x for x in floats(own) if x.requires_grad] if derived and own else []
        calls = None
        if knobs or seen.makes_leaves or (seen.constants is not None and not seen.warned):
            there = {*map(storage_of, tensors), *self._outside}
            calls = watched_calls(LOSS, knobs, arguments if derived else (), constants=seen.constants, there=there)
        versions = versions_of((*self._outside.values(), *tensors)) if derived else ()
        loss = None
        with left_at_new_hooks() if derived and not seen.has_hooks else nullcontext(), calls or nullcontext():
            loss = self._value(params, batch, *own)
        if loss is None:
            return None, 0
        refuse_changed(LOSS, versions)
        seen.warned |= bool(calls and calls.warned)
        return loss, refuse_captured(loss, [*arguments, *calls.leaves] if calls else arguments)

    def _looked_at(
        self, tensors: Sequence[Tensor], arguments: Sequence[Tensor], params: Params, batch: Any, *own: Any
    ) -> tuple[Tensor, int]:
        """The same, with each operation checked."""
        seen, asked = self.verified, self._asked
        knobs = [x for x in floats(own) if x.requires_grad] if asked.derived else []
        watch = refuse_writes(LOSS, knobs, tensors)
        there = map(storage_of, tensors)
        known, operations = (arguments, watch) if asked.derived else ((), None)
        calls = watched_calls(LOSS, knobs, known, operations, there=there)
        with operations or nullcontext(), calls:
            loss = self._value(params, batch, *own)
        graph = refuse_captured(loss, [*arguments, *calls.leaves])
        seen.makes_leaves |= bool(calls.leaves)
        if not asked.derived:
            return loss, graph
        refuse_once_differentiable(loss, None if asked.twice else floats(params))
        if asked.compiled:
            refuse_own_backwards(loss)
        if calls.has_read:
            seen.constants = calls.constants | (seen.constants or set())
        seen.outside += [ref(x) for key, x in watch.outside.items() if key not in self._outside]
        self._outside |= watch.outside
        seen.has_hooks |= watch.has_hooks
        seen.warned |= calls.warned
        seen.bytes = max(seen.bytes, watch.bytes)
        return loss, graph

    def _value(self, params: Params, batch: Any, *own: Any) -> Tensor:
        loss = check_scalar("train_loss", self.bare(params, batch, *own))
        # Whether it depends on what the innermost gradient is taken in.
        if not (level_of(loss) == top_level() if under_transform() else loss.requires_grad):
            raise no_graph()
        return loss
