"""The training loss, looked at in the first step: some losses would give a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...calls import warn_caller
from ...types import Params
from ..core.leaves import floats, requiring_grad
from ..core.memory import storage_of
from ..core.problem import loss_at, no_graph
from ..core.replay import Replay
from ..core.torch_private import has_graph, has_saved_tensor_hooks, refuse_saved_tensor_hooks, under_transform
from .call_arguments import check_scalar
from .calls import read_knobs, read_outside, watched_calls
from .cuts import Cuts
from .graphs import (
    loses_derivative,
    refuse_cuts,
    refuse_once_differentiable,
    refuse_outer_tensors,
    refuse_own_backwards,
)
from .messages import LOSS
from .operations import watched_operations
from .verdict import Needs, Verdict

_OUTSIDE = LOSS._replace(knobs="an hparam, of the batch, or of what it captures,")
_NO_HOOKS = "hooks on saved tensors in a training loss that had none"
_WARN_OF_DETACH = (
    "train_loss detaches a function of its params (detach(), data) and computes with it, so the derivative of the "
    "training takes that for a constant, though it changes with the params. Several losses, joined by detach, are a "
    "game: hft.train(optimizer, None, params, batches, grads=...). If it is to count as constant (a target, a "
    "straight-through estimate), filter this warning"
)


class GuardedLoss:
    """``train_loss(params, batch[, own])``, or an error where a derivative through it would be wrong.

    The first step of code that nobody has seen is looked at, operation by operation. Later steps are looked at for
    numbers that are read of the loss's hparams, unless its code reads none, and, where a node hides the graph, for
    captured tensors.
    """

    def __init__(self, unguarded: Callable[..., Tensor], verdict: Verdict, needs: Needs) -> None:
        self.unguarded: Callable[..., Tensor] = unguarded
        self.verdict: Verdict = verdict
        #: Tensors that the loss itself has let require grad, in its last call.
        self.leaves: list[Tensor] = []
        self._needs = needs
        self._done = False  # whether this training needs no more looks
        self._later: Cuts | None = None  # of a loss that reads numbers of params

    @cached_property
    def _replay(self) -> Replay:
        return Replay()

    def __call__(self, params: Params, batch: Any, *own: Any) -> Tensor:
        needs, verdict = self._needs, self.verdict
        if under_transform():
            with read_outside(_OUTSIDE) if verdict.reads or not verdict.transformed else nullcontext():
                loss = self._value(params, batch, *own)
            if needs.derived and not (verdict.loss or verdict.transformed):
                refuse_once_differentiable(loss)
            verdict.transformed = True
            return loss
        if not (verdict.loss or self._done) or needs.compiled or verdict.makes_leaves:
            return self._inspect(params, batch, *own)
        # Where nothing is differentiated, a training gradient may still be that of other weights.
        look = self._value if self._done and not needs.derived else self._see_hooks
        self._done = True
        loss = (self._watch_numbers if needs.derived and verdict.reads else look)(params, batch, *own)
        lost = loses_derivative(LOSS, [loss], requiring_grad((params, batch, own))) if needs.closed else None
        if lost is not None:
            raise lost
        return loss

    def before_step(self, params: Params, batch: Any, hparams: dict[str, Any]) -> None:
        """An evaluation at the level of the step itself, where tensors of outer transforms can be detected."""
        if under_transform():
            try:
                with refuse_outer_tensors(LOSS, leaves_too=True), torch.no_grad():
                    self._replay.run(self._replay.now(), lambda: loss_at(self.unguarded, params, batch, hparams))
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                raise RuntimeError(
                    "train_loss takes a gradient itself by torch.autograd, and so cannot be looked at under several "
                    "transforms of torch.func: take torch.func.grad in it, or train by hft.Unroll()"
                ) from error

    def _watch_numbers(self, params: Params, batch: Any, *own: Any) -> Tensor:
        """The loss, with reads of the numbers of its hparams refused."""
        knobs = requiring_grad(own)
        with read_knobs(LOSS, knobs, (params, batch)) if knobs else nullcontext():
            return self._see_hooks(params, batch, *own)

    def _see_hooks(self, params: Params, batch: Any, *own: Any) -> Tensor:
        """The loss, and whether it sets hooks on saved tensors, as activation checkpointing does."""
        if self.verdict.has_hooks or has_saved_tensor_hooks():  # of the caller, where training is checkpointed itself
            return self._value(params, batch, *own)
        rng, before = self._replay.now() if self.verdict.draws else None, refuse_saved_tensor_hooks(_NO_HOOKS)
        try:
            return self._value(params, batch, *own)
        except RuntimeError as error:
            if str(error) != _NO_HOOKS:
                raise
        finally:
            refuse_saved_tensor_hooks(before)
        self.verdict.has_hooks = True
        if rng is not None:
            self._replay.rewind(rng)
        return self._value(params, batch, *own)

    def _inspect(self, params: Params, batch: Any, *own: Any) -> Tensor:
        """The loss, with each operation checked."""
        verdict, needs = self.verdict, self._needs
        tensors = floats((params, batch, own))
        arguments = [x for x in tensors if x.requires_grad]
        knobs = requiring_grad(own)
        operations = None
        if needs.derived:
            operations = watched_operations(
                LOSS, knobs, may_write=not needs.closed, given=floats((params, batch)), waits=needs.of_captured
            )
        cuts = Cuts(operations, map(storage_of, tensors), self._later)
        calls = watched_calls(LOSS, knobs, arguments, operations, cuts)
        with refuse_outer_tensors(LOSS) if needs.inside_function else nullcontext(), operations or nullcontext(), calls:
            loss = (self._see_hooks if operations is None else self._value)(params, batch, *own)
        self.leaves, self._later = calls.leaves, cuts if cuts.has_read else None
        verdict.makes_leaves |= bool(calls.leaves)
        if operations is not None:
            verdict.has_hooks |= operations.has_hooks
            verdict.draws = operations.draws
        lost = loses_derivative(LOSS, [loss], [*arguments, *calls.leaves])
        if needs.closed and lost is not None:
            raise lost
        if operations is not None and (lost is not None or not needs.of_captured):
            if operations.error is not None:
                raise operations.error
            if id(loss) in cuts.detached and not needs.constant_gradient:
                warn_caller(_WARN_OF_DETACH)
            refuse_once_differentiable(loss, None if needs.differentiates_whole_gradient else floats(params))
            if needs.compiled:
                refuse_own_backwards(loss)
                refuse_cuts(cuts.ignored_by_programs - (set() if needs.tangents else {"torch.no_grad()"}))
            verdict.bytes_made = max(verdict.bytes_made, operations.bytes_made)
            verdict.refusal = verdict.refusal or operations.written or lost
        self._done = calls.warned or not cuts.has_read
        verdict.loss = self._done and not calls.warned  # the next training is warned of again
        return loss

    def _value(self, params: Params, batch: Any, *own: Any) -> Tensor:
        loss = check_scalar("train_loss", self.unguarded(params, batch, *own))
        if not has_graph(loss):
            raise no_graph()
        return loss
