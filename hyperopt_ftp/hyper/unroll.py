"""Exact reverse mode through K steps, one step's graph at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..hparams import check_count, check_flag
from ..types import CheckpointEvery, Params, State
from .checkpoints import Checkpoints, Point
from .functorch import under_transform
from .leaves import cotangents_of, floats, fresh, known, refill
from .second_order import twice_differentiable
from .steps import Gradient, Steps, pull
from .strategy import Start, Trained

__all__ = ["Unroll"]

Row = list[Tensor | None]  # derivatives of some tensors; None is zero


class _Graph(NamedTuple):
    """A step at leaves of its own, with its graph."""

    gradient: Gradient
    state: list[Tensor]  # its leaves
    outputs: list[Tensor]  # the floats of params and state after it
    cut: tuple[list[Tensor], list[Tensor]] | None  # leaves for 16-bit gradients and params, in float32


class _Run(NamedTuple):
    """What a run leaves for the way back."""

    start: Start  # hparams with leaves of their own
    knobs: list[Tensor]  # these leaves, as far as they are wanted
    first: int  # the first step that is differentiated
    whole: bool  # whether that is because there are no others, and the start counts too
    points: Checkpoints
    gradients: dict[int, Gradient]  # those that were kept
    graphs: dict[int, _Graph]  # those of whole steps that were kept


@dataclass(frozen=True)
class Unroll:
    """Reverse mode through all steps, second-order terms included (backpropagation through the optimizer).

    With ``p_{k+1}, s_{k+1} = update(g_k, s_k, p_k; h)`` and ``g_k = d train_loss / d p_k``, the adjoints walk back::

        (gbar, sbar, pbar, hbar) = vjp of update at step k with (lambda_p, lambda_s)
        lambda_p <- pbar + H_k gbar,   lambda_s <- sbar,   dL/dh += hbar + (d^2 train_loss / dh dp)^T gbar

    where ``H_k gbar`` is a Hessian-vector product; a batch's cotangent is ``(d^2 train_loss / db dp)^T gbar``. One
    step's graph lives at a time, so the peak is that graph plus the params and state of each step; a gradient is
    computed twice. Under a ``torch.func`` transform, and for a derivative of the derivative
    (``create_graph=True``), the steps themselves are differentiated, which keeps the graphs of all.

    Args:
        truncate: differentiate the last ``truncate`` steps only; the start's params and state count as constants.
            ``None``: all.
        checkpoint: keep params and state of every n-th step and recompute those between (``"sqrt"``: n = sqrt(K)); 1
            keeps every step. ``False``: keep the graphs of all gradients and recompute nothing: fastest, most memory.
        offload: what is kept lies on the CPU.

    Raises:
        ValueError: an option outside what is listed, or fewer batches than ``truncate``.
        RuntimeError: a training loss that writes into tensors in place (BatchNorm's statistics), or that differs when a
            step is computed again; one without a second derivative.

    Random numbers (dropout) are drawn as in a plain loop, and are the same where a step is computed again. Adjoints of
    16-bit weights are kept in float32.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> value, grads, _ = hft.hypergradient(hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr")
    >>> round(grads["lr"].item(), 6)                    # d (1 - 2 lr)^6 / d lr = -12 (1 - 2 lr)^5
    -3.93216
    """

    truncate: int | None = None
    checkpoint: CheckpointEvery = 1
    offload: bool = False

    def __post_init__(self) -> None:
        check_count("truncate", self.truncate, "steps", none=True)
        check_flag("offload", self.offload)
        number = isinstance(self.checkpoint, int) and not isinstance(self.checkpoint, bool) and self.checkpoint >= 1
        ok = self.checkpoint == "sqrt" or self.checkpoint is False or number
        if not ok:
            raise ValueError(f"checkpoint must be a number of steps >= 1, 'sqrt' or False, got {self.checkpoint!r}")
        if self.checkpoint is False and self.offload:
            raise ValueError("checkpoint=False keeps graphs, which stay where they are: leave offload out")

    @property
    def exact(self) -> bool:
        return self.truncate is None

    def run(self, steps: Steps, start: Start) -> tuple[Trained, Any]:
        count = len(start.batches)
        if self.truncate is not None and count < self.truncate:
            raise ValueError(f"batches has {count} steps, fewer than truncate = {self.truncate}")
        if under_transform():
            return steps.loop(start), start
        first = count - self.truncate if self.truncate else 0
        every = max(1, math.isqrt(count - first)) if self.checkpoint == "sqrt" else int(self.checkpoint) or 1
        knobs, hparams = fresh(start.hparams, steps.wanted.hparams)
        start = start._replace(hparams=hparams)
        losses: list[Tensor] = []
        whole = self.truncate is None
        run = _Run(start, knobs, first, whole, Checkpoints(steps, start, every, self.offload), {}, {})
        params, state = fresh((start.params, start.state), False)[1]
        keep = self.checkpoint is False
        with twice_differentiable():
            for k in range(count):
                curved, wide = _curved(steps, run, k), not _narrow(params)
                if k >= first and not (keep and wide):
                    run.points.visit(k, params, state)
                graph = k >= first and curved and keep
                found = steps.gradient(params, start.batches[k], hparams, _wanted_batch(steps, k), graph=graph)
                losses.append(found.loss.detach())
                if k >= first and keep and wide:
                    run.graphs[k], new = _step(steps, found, params, state, hparams)
                    params, state = fresh(new, False)[1]
                    continue
                if k >= first:
                    kept = keep or not curved
                    run.points.note(k, found, again=not kept)
                    if kept:
                        run.gradients[k] = found
                with torch.no_grad():
                    grads = refill(params, [g.detach() for g in found.grads])
                    params, state = steps.update(grads, state, params, hparams)
        return Trained(params, state, torch.stack(losses)), run

    def pullback(self, steps: Steps, residual: Any, cotangents: Trained) -> Start:
        if isinstance(residual, Start):
            return self._pullback_under_transform(steps, residual, cotangents)
        run: _Run = residual
        back_p: Row = [*known(cotangents.params)]
        back_s: Row = [*known(cotangents.state)]
        sums: Row = [None] * len(run.knobs)
        of_batches: dict[int, Row] = {}
        between: dict[int, Point] = {}
        with twice_differentiable():
            for k in range(len(run.start.batches) - 1, run.first - 1, -1):
                graph = run.graphs[k] if k in run.graphs else _again(steps, run, k, run.points.at(k, between))
                kept = k in run.graphs or k in run.gradients
                back_p, back_s, more, of_batches[k] = _back(graph, run.knobs, back_p, back_s, kept)
                sums = _sum(sums, more)
        run.points.compare()
        return Start(
            cotangents_of(run.start.hparams, sums, steps.wanted.hparams),
            cotangents_of(run.start.params, back_p) if run.whole else None,
            cotangents_of(run.start.state, back_s) if run.whole else None,
            _batches(steps, run, of_batches),
        )

    def _pullback_under_transform(self, steps: Steps, start: Start, cotangents: Trained) -> Start:
        """Of the last steps, in one piece, from where they begin."""
        count = len(start.batches)
        first = count - (self.truncate or count)
        batches = [start.batches[k] for k in range(count)]
        head = steps.loop(start._replace(batches=batches[:first])) if first else start

        def last(h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            hparams, rest = refill(start.hparams, h), refill(batches[first:], b)
            end = steps.loop(Start(hparams, head.params, head.state, rest))
            return floats(end.params), floats(end.state)

        back = torch.func.vjp(last, floats(start.hparams), floats(batches[first:]))[1]
        of_hparams, of_last = back((known(cotangents.params), known(cotangents.state)))
        found = None
        if isinstance(start.batches, (list, tuple)):
            nothing = [tree.map_tree(lambda _: None, batch) for batch in batches[:first]]
            found = [*nothing, *cotangents_of(batches[first:], of_last)]
        return Start(cotangents_of(start.hparams, of_hparams), None, None, found)


def _again(steps: Steps, run: _Run, k: int, point: Point) -> _Graph:
    """Step k, made again with its graph."""
    found = run.gradients.get(k)
    if found is None:
        curved, batch, wanted = _curved(steps, run, k), run.start.batches[k], _wanted_batch(steps, k)
        found = run.points.gradient_again(
            k, point, lambda: steps.gradient(point.params, batch, run.start.hparams, wanted, graph=curved, again=True)
        )
    return run.points.update_again(k, lambda: _step(steps, found, point.params, point.state, run.start.hparams)[0])


def _step(
    steps: Steps, found: Gradient, params: Params, state: State, hparams: dict[str, Any]
) -> tuple[_Graph, tuple[Params, State]]:
    """The step that goes on from a gradient, with its graph, and what comes out of it."""
    leaves, before = fresh(state, wide=True)
    cut = None
    if _narrow(params):
        g, grads = fresh(refill(params, found.grads), wide=True)
        p, at = fresh(params, wide=True)
        cut = (g, p)
    else:
        grads, at = refill(params, found.grads), refill(params, found.params)
    with torch.enable_grad():
        new = steps.update(grads, before, at, hparams)
    return _Graph(found, leaves, floats(new), cut), new


def _narrow(params: Params) -> bool:
    """Whether there are 16-bit params: their adjoints are kept in float32, and go through the loss scaled."""
    return any(tree.working(x).dtype != x.dtype for x in tree.leaves(params))


def _curved(steps: Steps, run: _Run, k: int) -> bool:
    """Whether step k's gradient is differentiated: at the first one, only for what is wanted of it."""
    wanted = steps.wanted
    loss_wanted = any(tree.leaves(wanted.hparams.get("loss", False)))
    params_wanted = run.whole and any(tree.leaves(wanted.params))
    return k > run.first or loss_wanted or params_wanted or any(tree.leaves(_wanted_batch(steps, k)))


def _wanted_batch(steps: Steps, k: int) -> Any:
    return steps.wanted.batches[k] if isinstance(steps.wanted.batches, (list, tuple)) else False


def _back(graph: _Graph, knobs: list[Tensor], back_p: Row, back_s: Row, kept: bool) -> tuple[Row, Row, Row, Row]:
    """Adjoints before a step from those after it, the step's part of the hypergradient, and its batch's."""
    found, cotangents = graph.gradient, [*back_p, *back_s]
    if graph.cut is None:
        inputs = [found.params, graph.state, knobs, found.batch]
        bar_p, bar_s, bar_h, bar_b = _parts(graph.outputs, cotangents, inputs, kept)
        return bar_p, bar_s, bar_h, bar_b
    g, p = graph.cut
    bar_g, bar_p, bar_s, bar_h = _parts(graph.outputs, cotangents, [g, p, graph.state, knobs], kept)
    more_p, more_h, bar_b = _parts(found.grads, bar_g, [found.params, knobs, found.batch], kept)
    return _sum(bar_p, more_p), bar_s, _sum(bar_h, more_h), bar_b


def _parts(outputs: list[Tensor], cotangents: Row, inputs: list[list[Tensor]], kept: bool) -> list[Row]:
    """:func:`pull` in several lists of tensors."""
    found = iter(pull(outputs, cotangents, [x for part in inputs for x in part], again=kept))
    return [[next(found) for _ in part] for part in inputs]


def _batches(steps: Steps, run: _Run, found: dict[int, Row]) -> list[Any] | None:
    if not isinstance(steps.wanted.batches, (list, tuple)):
        return None
    nothing = [None] * len(tree.leaves(run.start.batches))
    return [
        cotangents_of(batch, found.get(k, nothing), steps.wanted.batches[k])
        for k, batch in enumerate(run.start.batches)
    ]


def _sum(row: Row, more: Row) -> Row:
    return [b if a is None else a if b is None else a + b for a, b in zip(row, more, strict=True)]
