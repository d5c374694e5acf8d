"""Steps that are run as they are written, and the way back through each by autograd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..dtensors import local
from ..types import Params, State
from .checkpoints import Point
from .first_update import refuse_other_updates
from .leaves import Row, floats, fresh, refill
from .rng import Recorder, RngState, fingerprint, refuse_other_steps
from .second_order import twice_differentiable
from .steps import Gradient, Steps, pull
from .strategy import Start

#: Bytes of the graphs that are kept unasked.
SMALL = 2**27


class _Graph(NamedTuple):
    """A step at leaves of its own, with its graph."""

    gradient: Gradient
    state: list[Tensor]  # its leaves
    outputs: list[Tensor]  # the floats of params and state after it
    cut: tuple[list[Tensor], list[Tensor]] | None  # leaves for 16-bit gradients and params, in float32


class EagerWalk:
    """K steps forward, and back from the last to step ``first``.

    :class:`~hyperopt_ftp.hyper.compiled.CompiledWalk` is the same by compiled steps.

    Args:
        steps: what is run.
        start: from where; hparams with leaves of their own in place of those that are wanted.
        knobs: these leaves.
        first: the first step that is differentiated.
        whole: whether what comes before it counts too.
    """

    def __init__(self, steps: Steps, start: Start, knobs: list[Tensor], first: int, whole: bool) -> None:
        self._whole = whole
        self._steps, self._start, self._knobs = steps, start, knobs
        self.first: int = first
        self._graphs: dict[int, _Graph] = {}  # of steps that were kept
        self._gradients: dict[int, Gradient] = {}  # of steps whose update is made again, and with it their graph
        self._updates: dict[int, RngState] = {}  # when these updates began
        self._prints: dict[int, Tensor] = {}  # of gradients that are made again
        self._twice = False  # whether an update has been made twice, to see that it is a function
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its print, and that of the step made again
        self._dtypes: set[torch.dtype] = set()
        self._keeps = False
        self._recorder = Recorder()
        wanted = steps.wanted
        self._curved_at_first = any(tree.leaves(wanted.hparams.get("loss", False)))
        self._curved_at_first |= whole and any(tree.leaves(wanted.params))

    def setting(self) -> AbstractContextManager[None]:
        """To be entered around forward, step and back."""
        return twice_differentiable()

    def beginning(self, first: int) -> EagerWalk:
        """Another one, from that step on."""
        return EagerWalk(self._steps, self._start, self._knobs, first, self._whole)

    def again(self) -> EagerWalk:
        """This one for a way back that leaves it as it is."""
        other = copy(self)
        other._keeps, other._pairs = True, []
        return other

    def forward(self, k: int, params: Params, state: State, keep: bool) -> tuple[Params, State, Tensor]:
        """Params and state after step k, and its loss; ``keep``: with the graph, so that it is not made again."""
        back, curved = k >= self.first, self.curved(k)
        batch, wanted = self._start.batches[k], self._steps.wanted_batch(k)
        found = self._steps.gradient(params, batch, self._start.hparams, wanted, graph=back and keep and curved)
        loss = found.loss.detach()
        if back and keep and not is_narrow(params):
            self._graphs[k], new = self._step(found, params, state)
            return *fresh(new, False)[1], loss
        if back and (keep or not curved):
            self._gradients[k], self._updates[k] = found, self._recorder.now()
        elif back:
            self._prints[k] = fingerprint(found.loss, found.grads)
        if not back or self._twice:
            return *self._update(found, params, state), loss
        self._twice, rng = True, self._recorder.now()
        new = self._update(found, params, state)
        refuse_other_updates(new, self._recorder.again(rng, lambda: self._update(found, params, state)))
        return *new, loss

    def small(self, params: Params, count: int) -> bool:
        """Whether ``count`` graphs are small enough to be kept unasked, by what the loss has made in a step so far.

        A gradient with its graph takes about four times that, and an update about eight tensors for each param.
        """
        weights = sum(local(x).numel() * tree.working(x).element_size() for x in floats(params))
        (each,) = self._steps.agreed([4 * self._steps.seen.bytes + 8 * weights])
        # A sequence of somebody's own may give the same memory for each step, and a graph does not copy it.
        return count * each <= SMALL and isinstance(self._start.batches, (list, tuple))

    def keep_if_small(self, k: int, params: Params, count: int) -> bool:
        """Whether ``count`` graphs like that of step k are :meth:`small`; if not, it is dropped."""
        if self.small(params, count):
            return True
        if k in self._graphs:
            found = self._graphs.pop(k).gradient
        elif self.curved(k):
            found = self._gradients.pop(k)
            del self._updates[k]
        else:
            return False  # its gradient has no graph
        self._prints[k] = fingerprint(found.loss, found.grads)
        return False

    def step(self, k: int, params: Params, state: State) -> tuple[Params, State]:
        """Params and state after step k, made once more."""
        found = self._steps.gradient(params, self._start.batches[k], self._start.hparams, again=True)
        self._note(k, found)
        return self._update(found, params, state)

    def back(self, k: int, point: Point, back_p: Row, back_s: Row) -> tuple[Row, Row, Row, Row]:
        """Adjoints before step k from those after it, its part of those of the knobs, and its batch's."""
        kept = k in self._graphs or k in self._gradients
        graph = self._taken(self._graphs, k) if k in self._graphs else self._made_again(k, point)
        found, cotangents, again = graph.gradient, [*back_p, *back_s], kept and self._keeps
        if graph.cut is None:
            inputs = [found.params, graph.state, self._knobs, found.batch]
            bar_p, bar_s, bar_h, bar_b = _pulled(graph.outputs, cotangents, inputs, again)
            return bar_p, bar_s, bar_h, bar_b
        g, p = graph.cut
        bar_g, bar_p, bar_s, bar_h = _pulled(graph.outputs, cotangents, [g, p, graph.state, self._knobs], again)
        more_p, more_h, bar_b = _pulled(found.grads, bar_g, [found.params, self._knobs, found.batch], again)
        return added(bar_p, more_p), bar_s, added(bar_h, more_h), bar_b

    def compare(self) -> None:
        """Raise where a step was another one when it was made again."""
        if self._pairs:
            refuse_other_steps(self._pairs, max(self._dtypes, key=lambda dtype: torch.finfo(dtype).eps))

    def _made_again(self, k: int, point: Point) -> _Graph:
        if k in self._gradients:
            found, rng = self._taken(self._gradients, k), self._taken(self._updates, k)
            return self._recorder.again(rng, lambda: self._step(found, point.params, point.state)[0])

        def again() -> _Graph:
            batch, wanted, graph = self._start.batches[k], self._steps.wanted_batch(k), self.curved(k)
            found = self._steps.gradient(point.params, batch, self._start.hparams, wanted, graph=graph, again=True)
            self._note(k, found)
            return self._step(found, point.params, point.state)[0]

        return self._recorder.again(point.rng, again)

    def _step(self, found: Gradient, params: Params, state: State) -> tuple[_Graph, tuple[Params, State]]:
        """The step that goes on from a gradient, with its graph, and what comes out of it."""
        leaves, before = fresh(state, wide=True)
        cut = None
        if is_narrow(params):
            g, grads = fresh(refill(params, found.grads), wide=True)
            p, at = fresh(params, wide=True)
            cut = (g, p)
        else:
            grads, at = refill(params, found.grads), refill(params, found.params)
        with torch.enable_grad():
            new = self._steps.update(grads, before, at, self._start.hparams)
        return _Graph(found, leaves, floats(new), cut), new

    def _update(self, found: Gradient, params: Params, state: State) -> tuple[Params, State]:
        with torch.no_grad():
            grads = refill(params, [g.detach() for g in found.grads])
            return self._steps.update(grads, state, params, self._start.hparams)

    def _note(self, k: int, found: Gradient) -> None:
        if k in self._prints:  # else its graph was kept, and the params after it were not
            self._pairs.append((k, self._prints[k], fingerprint(found.loss, found.grads)))
            self._dtypes.update(x.dtype for x in (found.loss, *found.grads))

    def _taken(self, kept: dict[int, Any], k: int) -> Any:
        return kept[k] if self._keeps else kept.pop(k)

    def curved(self, k: int) -> bool:
        """Whether step k's gradient is differentiated: at the first one, only for what is wanted of it."""
        return k > self.first or self._curved_at_first or any(tree.leaves(self._steps.wanted_batch(k)))


def added(row: Row, more: Row) -> Row:
    """The sum of two rows."""
    return [b if a is None else a if b is None else a + b for a, b in zip(row, more, strict=True)]


def _pulled(outputs: list[Tensor], cotangents: Row, inputs: list[list[Tensor]], again: bool) -> list[Row]:
    """:func:`pull` in several lists of tensors."""
    found = iter(pull(outputs, cotangents, [x for part in inputs for x in part], again=again))
    return [[next(found) for _ in part] for part in inputs]


def is_narrow(params: Params) -> bool:
    """Whether there are 16-bit params: their adjoints are kept in float32, and go through the loss scaled."""
    return any(tree.working(x).dtype != x.dtype for x in tree.leaves(params))
