"""Uncompiled steps, and the backward pass through them by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...types import Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, added, detached_leaves, floats
from ..core.problem import Gradient, InnerProblem, without_loss
from ..core.replay import Replay, RngState, fingerprint, refuse_other_steps, refuse_other_updates
from ..core.vjp import pull_columns
from .by_tensor import acts_by_tensor, back_by_tensor
from .points import Checkpoint, Checkpoints

#: Steps that are compared together: of many short ones, what is compared takes more memory than the points.
_AT_ONCE = 64


class _Kept(NamedTuple):
    """The gradient of a step, with its graph."""

    gradient: Gradient
    batch: list[Tensor]  # leaves of the step's
    rng: RngState  # before the update


class EagerSteps:
    """K uncompiled steps forward, and back from the last to step ``first``.

    Args:
        problem, inputs: of the training.
        first: the first step that is differentiated.
        whole: whether what comes before it counts too.
    """

    def __init__(self, problem: InnerProblem, inputs: TrainInputs, first: int, whole: bool) -> None:
        self._problem, self._inputs, self._whole = problem, inputs, whole
        self._knobs, self._hparams = detached_leaves(inputs.hparams, problem.needs_grad.hparams)
        self.first: int = first
        self._count = self._kept_from = len(inputs.batches)
        self._retains = False
        self._graphs: dict[int, _Kept] = {}
        self._prints: dict[int, Tensor] = {}  # of steps that are made again
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its print, and that of the step made again
        self._repeats = False  # whether an update has been made twice, to see that it is a function
        self._dtypes: set[torch.dtype] = set()
        self._replay = Replay()
        asked = problem.needs_grad
        self._first_needs_hvp = any(tree.leaves(asked.hparams.get("loss", False)))
        self._first_needs_hvp |= whole and any(tree.leaves(asked.params))

    def beginning(self, first: int) -> EagerSteps:
        """Other steps, from ``first`` on."""
        return EagerSteps(self._problem, self._inputs, first, self._whole)

    def keep_graphs(self, count: int) -> None:
        """Keep the graphs of so many steps at the end."""
        self._kept_from = self._count - count

    def drop_graphs(self) -> None:
        """Keep none, nor those that are there: their steps are made again."""
        self._kept_from = self._count
        self._prints |= {k: fingerprint(kept.gradient.loss, kept.gradient.grads) for k, kept in self._graphs.items()}
        self._graphs.clear()

    def for_retained_backward(self) -> EagerSteps:
        """A copy for a backward pass that may run again, or in another thread."""
        other = copy(self)
        other._retains, other._pairs = True, []
        return other

    def needs_hvp(self, k: int) -> bool:
        """Whether step k's gradient is differentiated; at the first step, only in what is asked for."""
        return k > self.first or self._first_needs_hvp or any(tree.leaves(self._problem.batch_needs_grad(k)))

    def forward(self, k: int, points: Checkpoints, params: Params, state: State) -> tuple[Params, State, Tensor]:
        """Params and state after step k, and its loss."""
        if k >= self.first:
            points.visit(k, params, state)
        keep = k >= self._kept_from
        found, leaves = self._gradient(self._problem, k, params, graph=keep)
        again = k >= self.first and not self._repeats
        rng = self._replay.now() if keep or again or points.links(k) else None
        grads = found.rebuild([g.detach() for g in found.grads])
        if rng is not None and points.links(k):
            points.link(k, grads, rng)
        new = self._update(self._problem, grads, params, state)
        if rng is not None and again:
            self._repeats = True
            other = self._replay.run(rng, lambda: self.update_again(grads, params, state))
            refuse_other_updates(floats(new), floats(other))
            del other
        if rng is not None and keep:
            self._graphs[k] = _Kept(found, leaves, rng)
        elif k >= self.first:
            self._prints[k] = fingerprint(found.loss, found.grads)
        return *new, found.loss.detach()

    def gradient_again(self, k: int, params: Params) -> Params:
        found, _ = self._gradient(self._problem.unguarded, k, params, graph=False)
        self._note(k, found)
        return found.rebuild([g.detach() for g in found.grads])

    def update_again(self, grads: Params, params: Params, state: State) -> tuple[Params, State]:
        return self._update(self._problem.unguarded, grads, params, state)

    def back(
        self, k: int, points: Checkpoints, back_p: OptionalTensors, back_s: OptionalTensors
    ) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, OptionalTensors]:
        """Back through step k: through its update, and then through its gradient.

        16-bit params are 32-bit ones in the update, so that adjoints are.

        Args:
            k: the step.
            points: where steps began.
            back_p, back_s: adjoints after it, which may be dropped from these lists.

        Returns:
            Adjoints before it, and what is added to the cotangents of knobs and of its batch.
        """
        kept = self._graphs.get(k)
        if not self._retains:
            self._graphs.pop(k, None)
        found, leaves, bars = self._through_update(k, points.at(k, self), kept, back_p, back_s)
        bar_g, bar_p, bar_s, bar_h = bars
        # The peak: of the point only the params are there by now.
        columns = [found.params, self._knobs, leaves]
        more_p, more_h, bar_b = pull_columns(found.grads, bar_g, columns, self._retains and kept is not None)
        for i, x in enumerate(more_p):  # of each but one at once, where there are many weights
            bar_p[i], more_p[i] = added([bar_p[i]], [x])[0], None
        return bar_p, bar_s, added(bar_h, more_h), bar_b

    def _through_update(
        self, k: int, point: Checkpoint, kept: _Kept | None, back_p: OptionalTensors, back_s: OptionalTensors
    ) -> tuple[Gradient, list[Tensor], Sequence[OptionalTensors]]:
        """The gradient of step k with its graph, leaves of the batch, and adjoints of grads, params, state, knobs."""

        def again() -> tuple[Gradient, list[Tensor], list[list[Tensor]], list[Tensor]]:
            found, leaves = kept[:2] if kept else self._gradient(self._problem.unguarded, k, point.params, graph=True)
            if by_tensor:
                return found, leaves, [], []
            g, grads = detached_leaves(found.rebuild(found.grads), wide=True)
            p, params = detached_leaves(point.params, wide=True)
            s, state = detached_leaves(point.state, wide=True)
            with torch.enable_grad():
                new = self._problem.update(grads, state, params, self._hparams)
            return found, leaves, [g, p, s, self._knobs], floats(new)

        optimizer = self._problem.optimizer
        by_tensor = acts_by_tensor(optimizer, point.params, point.state)
        found, leaves, inputs, outputs = self._replay.run(kept.rng if kept else point.rng, again)
        self._note(k, found)
        if by_tensor:
            grads, hparams = found.rebuild(found.grads), without_loss(self._hparams)
            bars = back_by_tensor(optimizer, grads, point.state, point.params, hparams, self._knobs, back_p, back_s)
        else:
            bars = pull_columns(outputs, [*back_p, *back_s], inputs)
        return found, leaves, bars

    def compare(self) -> None:
        """Raise if a step that was made again is another one than it was."""
        pairs, self._pairs = self._pairs, []
        if pairs:
            refuse_other_steps(pairs, max(self._dtypes, key=lambda dtype: torch.finfo(dtype).eps))

    def _gradient(self, problem: InnerProblem, k: int, params: Params, graph: bool) -> tuple[Gradient, list[Tensor]]:
        """The gradient of step k, and the leaves of its batch."""
        asked = problem.batch_needs_grad(k) if self._problem.asks_batches else False
        leaves, batch = detached_leaves(self._inputs.batches[k], asked)
        return problem.gradient(params, batch, self._hparams, graph and self.needs_hvp(k)), leaves

    def _update(self, problem: InnerProblem, grads: Params, params: Params, state: State) -> tuple[Params, State]:
        with torch.no_grad():
            return problem.update(grads, state, params, self._hparams)

    def _note(self, k: int, found: Gradient) -> None:
        if k in self._prints:  # else its graph was kept
            self._pairs.append((k, self._prints[k], fingerprint(found.loss, found.grads)))
            self._dtypes.update(x.dtype for x in (found.loss, *found.grads))
        if len(self._pairs) == _AT_ONCE:
            self.compare()
