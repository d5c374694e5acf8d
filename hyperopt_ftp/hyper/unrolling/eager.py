"""Uncompiled steps, and the backward pass through them by autograd."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...dtensors import local
from ...types import Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, added, detached, detached_leaves, floats, is_narrow
from ..core.problem import Gradient, InnerProblem
from ..core.replay import Replay, RngState, fingerprint, refuse_other_steps, refuse_other_updates
from ..core.vjp import pull_columns
from .points import Checkpoint, Checkpoints

#: Bytes of the graphs that are kept unasked.
SMALL = 2**27


@dataclass
class _Graph:
    """The graph of one step, or of several in a row."""

    first: int
    end: tuple[Params, State]  # after the last of them
    params: list[Tensor]  # leaves where the first begins
    state: list[Tensor]
    batches: list[list[Tensor]] = field(default_factory=list)  # leaves of each step's


class EagerSteps:
    """K uncompiled steps forward, and back from the last to step ``first``.

    Args:
        problem, inputs: of the training; hparams that need a gradient are replaced by leaves.
        knobs: these leaves.
        first: the first step that is differentiated.
        whole: whether what comes before it counts too.
    """

    def __init__(
        self, problem: InnerProblem, inputs: TrainInputs, knobs: list[Tensor], first: int, whole: bool
    ) -> None:
        self._problem, self._inputs, self._knobs, self._whole = problem, inputs, knobs, whole
        self.first: int = first
        self._count = self._kept_from = len(inputs.batches)
        self._if_small, self._of_state = False, True
        self._graph: _Graph | None = None  # of the steps that are kept
        # What is kept in 16 bits, with leaves of the batch and the state before the update, whose graph is in 32 bits.
        self._gradients: dict[int, tuple[Gradient, list[Tensor], RngState]] = {}
        self._prints: dict[int, Tensor] = {}  # of steps that are made again
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its print, and that of the step made again
        self._repeats = False  # whether an update has been made twice, to see that it is a function
        self._dtypes: set[torch.dtype] = set()
        self._retains, self._narrow = False, is_narrow(inputs.params)
        self._replay = Replay()
        asked = problem.needs_grad
        self._first_needs_hvp = any(tree.leaves(asked.hparams.get("loss", False)))
        self._first_needs_hvp |= whole and any(tree.leaves(asked.params))

    def beginning(self, first: int, of_state: Any = True) -> EagerSteps:
        """Other steps from ``first`` on; ``of_state``: what of a state their graphs begin with."""
        other = EagerSteps(self._problem, self._inputs, self._knobs, first, self._whole)
        other._of_state = of_state
        return other

    def keep_graphs(self, count: int, if_small: bool = False) -> None:
        """Keep the graphs of so many steps at the end; ``if_small``: unless the first shows that they are large."""
        self._kept_from, self._if_small = self._count - count, if_small and count > 0

    def for_retained_backward(self) -> EagerSteps:
        """A copy for a backward pass that may run again."""
        other = copy(self)
        other._retains, other._pairs = True, []
        return other

    def needs_hvp(self, k: int) -> bool:
        """Whether step k's gradient is differentiated; at the first step, only in what is asked for."""
        return k > self.first or self._first_needs_hvp or any(tree.leaves(self._problem.batch_needs_grad(k)))

    def forward(self, k: int, params: Params, state: State) -> tuple[Params, State, Tensor]:
        """Params and state after step k, with their graph if it is kept, and its loss."""
        keep = k >= self._kept_from
        if keep and not self._narrow:
            self._graph = self._graph or self._beginning_at(k, params, state)
            found = self._extend(self._graph, self._problem)
            params, state = self._graph.end
        else:
            found, leaves = self._gradient(self._problem, k, params, graph=keep)
            if keep:
                self._gradients[k] = found, leaves, self._replay.now()
            elif k >= self.first:
                self._prints[k] = fingerprint(found.loss, found.grads)
            rng = None if self._repeats or k < self.first else self._replay.now()
            new = self._update(self._problem, found, params, state)
            if rng is not None:
                self._repeats = True
                again = self._replay.run(rng, lambda: self._update(self._problem.unguarded, found, params, state))
                refuse_other_updates(floats(new), floats(again))
            params, state = new
        if self._if_small and k == self.first and not self.small(params, self._count - k):
            self._graph, self._gradients, self._kept_from = None, {}, self._count
            self._prints[k] = fingerprint(found.loss, found.grads)
            params, state = detached((params, state))
        return params, state, found.loss.detach()

    def small(self, params: Params, count: int) -> bool:
        guards = self._problem.guards
        small = are_small(self._problem, guards.verdict.bytes_made if guards else 0, params, count)
        # A sequence of somebody's own may give the same memory for each step, and a graph does not copy it.
        return small and isinstance(self._inputs.batches, (list, tuple))

    def step(self, k: int, params: Params, state: State) -> tuple[Params, State]:
        problem = self._problem.unguarded
        found, _ = self._gradient(problem, k, params, graph=False)
        new = self._update(problem, found, params, state)
        self._note(k, found)
        return new

    def back(
        self, end: int, points: Checkpoints, back_p: OptionalTensors, back_s: OptionalTensors
    ) -> tuple[int, OptionalTensors, OptionalTensors, OptionalTensors, list[OptionalTensors]]:
        """Back from the end of a step: through it, or through all those before whose graphs are kept.

        Returns:
            The first of these steps, adjoints before it, and what is added to the cotangents of knobs and batches.
        """
        graph, cotangents = self._graph, [*back_p, *back_s]
        retain = self._retains and end > self._kept_from
        point = points.at(end - 1 if graph is None else graph.first, self.step)
        if self._narrow:
            return end - 1, *self._back_in_16_bits(end - 1, point, cotangents, retain)
        graph = graph or self._made_again(end - 1, point)
        self._graph = None
        inputs = [graph.params, graph.state, self._knobs, *graph.batches]
        bar_p, bar_s, bar_h, *bars = pull_columns(floats(graph.end), cotangents, inputs, retain)
        return graph.first, bar_p, bar_s, bar_h, bars

    def compare(self) -> None:
        if self._pairs:
            refuse_other_steps(self._pairs, max(self._dtypes, key=lambda dtype: torch.finfo(dtype).eps))

    def _beginning_at(self, k: int, params: Params, state: State) -> _Graph:
        (p, params), (s, state) = detached_leaves(params), detached_leaves(state, self._of_state)
        return _Graph(k, (params, state), p, s)

    def _extend(self, graph: _Graph, problem: InnerProblem) -> Gradient:
        """One more step; ``problem`` gives its gradient."""
        params, state = graph.end
        found, leaves = self._gradient(problem, graph.first + len(graph.batches), params, graph=True)
        graph.batches.append(leaves)
        with torch.enable_grad():
            graph.end = self._problem.update(found.rebuild(found.grads), state, params, self._inputs.hparams)
        return found

    def _made_again(self, k: int, point: Checkpoint) -> _Graph:
        graph = self._beginning_at(k, point.params, point.state)
        self._note(k, self._replay.run(point.rng, lambda: self._extend(graph, self._problem.unguarded)))
        return graph

    def _back_in_16_bits(
        self, k: int, point: Checkpoint, cotangents: OptionalTensors, retain: bool
    ) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, list[OptionalTensors]]:
        """Through the update in 32 bits, and then through the gradient."""
        kept = self._gradients.get(k) if retain else self._gradients.pop(k, None)

        def again() -> tuple[Gradient, list[Tensor], list[list[Tensor]], list[Tensor]]:
            found, leaves = kept[:2] if kept else self._gradient(self._problem.unguarded, k, point.params, graph=True)
            g, grads = detached_leaves(found.rebuild(found.grads), wide=True)
            p, params = detached_leaves(point.params, wide=True)
            s, state = detached_leaves(point.state, wide=True)
            with torch.enable_grad():
                new = self._problem.update(grads, state, params, self._inputs.hparams)
            return found, leaves, [g, p, s, self._knobs], floats(new)

        found, leaves, inputs, outputs = self._replay.run(kept[2] if kept else point.rng, again)
        self._note(k, found)
        bar_g, bar_p, bar_s, bar_h = pull_columns(outputs, cotangents, inputs, False)
        more_p, more_h, bar_b = pull_columns(found.grads, bar_g, [found.params, self._knobs, leaves], retain)
        return added(bar_p, more_p), bar_s, added(bar_h, more_h), [bar_b]

    def _gradient(self, problem: InnerProblem, k: int, params: Params, graph: bool) -> tuple[Gradient, list[Tensor]]:
        """The gradient of step k, and the leaves of its batch."""
        asked = problem.batch_needs_grad(k) if self._problem.asks_batches else False
        leaves, batch = detached_leaves(self._inputs.batches[k], asked)
        return problem.gradient(params, batch, self._inputs.hparams, graph and self.needs_hvp(k)), leaves

    def _update(self, problem: InnerProblem, found: Gradient, params: Params, state: State) -> tuple[Params, State]:
        with torch.no_grad():
            grads = found.rebuild([g.detach() for g in found.grads])
            return problem.update(grads, state, params, self._inputs.hparams)

    def _note(self, k: int, found: Gradient) -> None:
        if k in self._prints:  # else its graph was kept
            self._pairs.append((k, self._prints[k], fingerprint(found.loss, found.grads)))
            self._dtypes.update(x.dtype for x in (found.loss, *found.grads))


def are_small(problem: InnerProblem, made: int, params: Params, count: int) -> bool:
    """Whether ``count`` graphs are small enough to be kept by default, by the bytes that the loss made in a step.

    A gradient with its graph takes about four times that, and an update about eight tensors for each param.
    """
    weights = sum(local(x).numel() * tree.working(x).element_size() for x in floats(params))
    (each,) = problem.agreed([4 * made + 8 * weights])
    return count * each <= SMALL
