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
from ..core.replay import Replay, RngState
from ..core.transforms import level_of, top_level, under_transform
from .arguments import check_scalar
from .graphs import (
    leaves_made_by_loss,
    refuse_captured,
    refuse_once_differentiable,
    refuse_outer_tensors,
    refuse_own_backwards,
)
from .scalar_reads import refuse_scalar_reads
from .subjects import LOSS, Captured, writes
from .verified import Asked, Verified
from .writes import left_at_new_hooks, refuse_other_weights, refuse_writes, storage_of


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
        if under_transform():
            loss = self._value(params, batch, *own)
            if self._asked.needs_grad:
                refuse_once_differentiable(loss)
            return loss
        if not self._asked.looked_at:
            return self._value(params, batch, *own)
        tensors = [x for x in tree.leaves((params, batch, own)) if isinstance(x, Tensor)]
        arguments = [x for x in tensors if x.requires_grad]
        rng = self._replay.now()
        with refuse_outer_tensors(LOSS) if self._asked.inside_function else nullcontext():
            if not self.verified.makes_leaves:
                with suppress(Captured):
                    return self._looked_at(tensors, arguments, (), rng, params, batch, *own)
                # The loss may have let it require grad itself: look once more.
                self.verified.makes_leaves = True
                for x in floats(batch):
                    if x.requires_grad and not any(x is argument for argument in arguments):
                        x.requires_grad_(False)  # as it was
                self._replay.rewind(rng)
            with leaves_made_by_loss() as made:
                return self._looked_at(tensors, arguments, made.found, rng, params, batch, *own)

    def before_step(self, params: Params, batch: Any, hparams: dict[str, Any]) -> None:
        """An evaluation at the level of the step itself, where tensors of outer transforms can be detected."""
        if under_transform():
            with refuse_outer_tensors(LOSS, leaves_too=True), torch.no_grad():
                self._replay.run(self._replay.now(), lambda: loss_at(self.bare, params, batch, hparams))

    def during_gradient(self, leaves: list[Tensor]) -> AbstractContextManager[Any]:
        return refuse_other_weights(leaves) if self.verified.has_hooks else nullcontext()

    def _looked_at(
        self, tensors: Sequence[Tensor], arguments: Sequence[Tensor], made: Sequence[Tensor], rng: RngState,
        params: Params, batch: Any, *own: Any,
    ) -> Tensor:  # fmt: skip
        if not self._asked.derived:
            loss = self._value(params, batch, *own)
            refuse_captured(loss, arguments, made)
            return loss
        seen = self.verified
        graphs = seen.graphs.setdefault((self._asked.twice, len(arguments)), set())
        knobs = [x for x in floats(own) if x.requires_grad] if own else []
        if graphs and not self._asked.compiled:
            # Hooks on what is saved leave no trace in the graph, nor does a number that is taken of a knob.
            with nullcontext() if seen.has_hooks else left_at_new_hooks():
                # Tensors of inference mode have no versions, and are never written.
                before = [(x, x._version) for x in (*self._outside.values(), *tensors) if not x.is_inference()]
                with refuse_scalar_reads(LOSS, knobs, arguments) if knobs else nullcontext():
                    loss = self._value(params, batch, *own)
                written = next((x for x, version in before if x._version != version), None)
                if written is not None:
                    raise writes(LOSS, "", written)
                if refuse_captured(loss, arguments, made) in graphs:
                    return loss
            self._replay.rewind(rng)
        with refuse_writes(LOSS, knobs, tensors) as watch, refuse_scalar_reads(LOSS, knobs, arguments) as reads:
            loss = self._value(params, batch, *own)
        graph = refuse_captured(loss, arguments, made)
        refuse_once_differentiable(loss, None if self._asked.twice else floats(params))
        if self._asked.compiled:
            refuse_own_backwards(loss)
        graphs.add(graph)
        seen.outside += [ref(x) for key, x in watch.outside.items() if key not in self._outside]
        self._outside |= watch.outside
        seen.has_hooks |= watch.has_hooks
        seen.warned |= reads.warned
        seen.bytes = max(seen.bytes, watch.bytes)
        return loss

    def _value(self, params: Params, batch: Any, *own: Any) -> Tensor:
        loss = check_scalar("train_loss", self.bare(params, batch, *own))
        # Whether it depends on what the innermost gradient is taken in.
        if not (level_of(loss) == top_level() if under_transform() else loss.requires_grad):
            raise no_graph()
        return loss
