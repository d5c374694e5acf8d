"""Uncompiled steps, and the backward pass through each by autograd."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...dtensors import local
from ...types import Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, added, detached_leaves, floats, is_float, is_narrow
from ..core.problem import Gradient, InnerProblem
from ..core.replay import Replay, RngState, fingerprint, refuse_other_steps, refuse_other_updates
from ..core.vjp import pull_columns
from .checkpoints import Checkpoint

#: Bytes of the graphs that are kept unasked.
SMALL = 2**27


class _Graph(NamedTuple):
    """A step at new leaves, with its graph."""

    gradient: Gradient
    state: list[Tensor]  # its leaves
    outputs: list[Tensor]  # the floats of params and state after it
    cut: tuple[list[Tensor], list[Tensor]] | None  # leaves for 16-bit gradients and params, in float32


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
        self._graphs: dict[int, _Graph] = {}  # of steps that were kept
        self._gradients: dict[int, tuple[Gradient, RngState]] = {}  # in 16 bits: the update's graph is one in 32 bits
        self._prints: dict[int, Tensor] = {}  # of steps that are made again
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its print, and that of the step made again
        self._repeats = False  # whether an update has been made twice, to see that it is a function
        self._dtypes: set[torch.dtype] = set()
        self._retains, self._narrow = False, is_narrow(inputs.params)
        self._replay = Replay()
        asked = problem.needs_grad
        self._first_needs_hvp = any(tree.leaves(asked.hparams.get("loss", False)))
        self._first_needs_hvp |= whole and any(tree.leaves(asked.params))

    def beginning(self, first: int) -> EagerSteps:
        return EagerSteps(self._problem, self._inputs, self._knobs, first, self._whole)

    def for_retained_backward(self) -> EagerSteps:
        """A copy for a backward pass that may run again."""
        other = copy(self)
        other._retains, other._pairs = True, []
        return other

    def needs_hvp(self, k: int) -> bool:
        """Whether step k's gradient is differentiated; at the first step, only in what is asked for."""
        return k > self.first or self._first_needs_hvp or any(tree.leaves(self._problem.batch_needs_grad(k)))

    def forward(self, k: int, params: Params, state: State, keep: bool) -> tuple[Params, State, Tensor]:
        """Params and state after step k, and its loss; ``keep``: keep the graph too."""
        problem, keep = self._problem, keep and k >= self.first
        batch, asked = self._inputs.batches[k], problem.batch_needs_grad(k)
        found = problem.gradient(params, batch, self._inputs.hparams, asked, graph=keep and self.needs_hvp(k))
        loss = found.loss.detach()
        if keep and not self._narrow:
            self._graphs[k], new = self._step(found, params, state)
            return *new, loss
        if keep:
            self._gradients[k] = found, self._replay.now()
        rng = None if self._repeats or k < self.first else self._replay.now()
        new = self._update(problem, found, params, state)
        if k >= self.first and not keep:
            self._prints[k] = fingerprint(loss, found.grads)
        if rng is not None:
            self._repeats = True
            again = self._replay.run(rng, lambda: self._update(problem.bare, found, params, state))
            refuse_other_updates(floats(new), floats(again))
        return *new, loss

    def small(self, params: Params, count: int) -> bool:
        """Whether ``count`` graphs are small enough to be kept by default, from what the loss made in a step so far.

        A gradient with its graph takes about four times that, and an update about eight tensors for each param.
        """
        weights = sum(local(x).numel() * tree.working(x).element_size() for x in floats(params))
        (each,) = self._problem.agreed([4 * self._problem.made() + 8 * weights])
        # A sequence of somebody's own may give the same memory for each step, and a graph does not copy it.
        return count * each <= SMALL and isinstance(self._inputs.batches, (list, tuple))

    def keep_if_small(self, k: int, params: Params, count: int) -> bool:
        """Whether ``count`` graphs like that of step k are :meth:`small`; if not, drop it."""
        if self.small(params, count):
            return True
        found = self._gradients.pop(k)[0] if k in self._gradients else self._graphs.pop(k).gradient
        self._prints[k] = fingerprint(found.loss, found.grads)
        return False

    def step(self, k: int, params: Params, state: State) -> tuple[Params, State]:
        problem = self._problem.bare
        found = problem.gradient(params, self._inputs.batches[k], self._inputs.hparams)
        new = self._update(problem, found, params, state)
        self._note(k, found)
        return new

    def back(
        self, k: int, point: Checkpoint, back_p: OptionalTensors, back_s: OptionalTensors
    ) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, OptionalTensors]:
        """Adjoints before step k from those after it, and the step's part of the cotangents of knobs and batch."""
        retain = self._retains and (k in self._graphs or k in self._gradients)
        graph = self._graphs.get(k) or self._made_again(k, point)
        if not self._retains:
            self._graphs.pop(k, None)
        found, cotangents = graph.gradient, [*back_p, *back_s]
        if graph.cut is None:
            inputs = [found.params, graph.state, self._knobs, found.batch]
            bar_p, bar_s, bar_h, bar_b = pull_columns(graph.outputs, cotangents, inputs, retain)
            return bar_p, bar_s, bar_h, bar_b
        g, p = graph.cut
        bar_g, bar_p, bar_s, bar_h = pull_columns(graph.outputs, cotangents, [g, p, graph.state, self._knobs], retain)
        more_p, more_h, bar_b = pull_columns(found.grads, bar_g, [found.params, self._knobs, found.batch], retain)
        return added(bar_p, more_p), bar_s, added(bar_h, more_h), bar_b

    def compare(self) -> None:
        if self._pairs:
            refuse_other_steps(self._pairs, max(self._dtypes, key=lambda dtype: torch.finfo(dtype).eps))

    def _made_again(self, k: int, point: Checkpoint) -> _Graph:
        problem, batch = self._problem.bare, self._inputs.batches[k]
        asked = problem.batch_needs_grad(k)
        kept, rng = self._gradients.get(k, (None, point.rng))
        if not self._retains:
            self._gradients.pop(k, None)

        def again() -> _Graph:
            found = kept or problem.gradient(point.params, batch, self._inputs.hparams, asked, graph=self.needs_hvp(k))
            return self._step(found, point.params, point.state)[0]

        graph = self._replay.run(rng, again)
        self._note(k, graph.gradient)
        return graph

    def _step(self, found: Gradient, params: Params, state: State) -> tuple[_Graph, tuple[Params, State]]:
        """The step after a gradient, with its graph, and its results without."""
        leaves, before = detached_leaves(state, wide=True)
        cut = None
        if self._narrow:
            g, grads = detached_leaves(found.rebuild(found.grads), wide=True)
            p, at = detached_leaves(params, wide=True)
            cut = (g, p)
        else:
            grads, at = found.rebuild(found.grads), found.rebuild(found.params)
        with torch.enable_grad():
            new = self._problem.update(grads, before, at, self._inputs.hparams)
        rows, rebuild = tree.flatten(new)
        after = rebuild([x.detach() if isinstance(x, Tensor) else x for x in rows])
        return _Graph(found, leaves, [x for x in rows if is_float(x)], cut), after

    def _update(self, problem: InnerProblem, found: Gradient, params: Params, state: State) -> tuple[Params, State]:
        with torch.no_grad():
            grads = found.rebuild([g.detach() for g in found.grads])
            return problem.update(grads, state, params, self._inputs.hparams)

    def _note(self, k: int, found: Gradient) -> None:
        if k in self._prints:  # else its graph was kept
            self._pairs.append((k, self._prints[k], fingerprint(found.loss, found.grads)))
            self._dtypes.update(x.dtype for x in (found.loss, *found.grads))
