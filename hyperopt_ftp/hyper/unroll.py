"""Exact reverse mode through K steps, with as much kept of them as was asked for."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import check_compile, check_count, check_flag
from ..types import CheckpointEvery, Compile
from .budget import Sizes, affordable
from .checkpoints import Checkpoints
from .compiled import CompiledWalk
from .eager import EagerWalk, added
from .functorch import keeps_graph, under_transform
from .leaves import Row, chosen, cotangents_of, floats, fresh, known, refill
from .plans import Plan, points_of_every, points_of_tree, with_graphs
from .probe import sizes_of
from .steps import Steps
from .strategy import Start, Trained


class _Run(NamedTuple):
    """What a run leaves for the way back."""

    start: Start
    first: int  # the first step that is differentiated
    walk: EagerWalk | CompiledWalk
    points: Checkpoints


@dataclass(frozen=True)
class Unroll:
    """Reverse mode through all steps, second-order terms included (backpropagation through the optimizer).

    With ``p_{k+1}, s_{k+1} = update(g_k, s_k, p_k; h)`` and ``g_k = d train_loss / d p_k``, the adjoints walk back::

        (gbar, sbar, pbar, hbar) = vjp of update at step k with (lambda_p, lambda_s)
        lambda_p <- pbar + H_k gbar,   lambda_s <- sbar,   dL/dh += hbar + (d^2 train_loss / dh dp)^T gbar

    where ``H_k gbar`` is a Hessian-vector product; a batch's cotangent is ``(d^2 train_loss / db dp)^T gbar``.

    Memory is traded for time. Where a step's graph is kept, its gradient is computed once. Where only its point is (the
    params and state that it begins with), its gradient is computed a second time, and one such graph lives at a time.
    Small graphs are all kept, unasked. Under a ``torch.func`` transform, and for a derivative of the derivative
    (``create_graph=True``), the steps themselves are differentiated, which keeps the graphs of all: ``checkpoint``,
    ``offload``, ``memory`` and ``compile`` then have no effect.

    Args:
        truncate: differentiate the last ``truncate`` steps only; the start's params and state count as constants.
            ``None``: all.
        checkpoint: keep the point of every n-th step and recompute those between (``"sqrt"``: n = sqrt(K)); 1 keeps
            every point. ``"log"``: keep them in a tree of arity 4, for thousands of steps: with
            ``d = ceil(log_4 K)``, at most ``1 + 3 d`` points live at once, and ``K (3 d / 4 - 1) + 1`` steps are made
            again (K = 1000: 16 points, 2.75 K steps). ``False``: keep the graphs of all gradients and recompute
            nothing: fastest, most memory. ``"auto"``: what recomputes least within ``memory``: all graphs; else every
            point, and the graphs of the last steps; else the points of every n-th step; else those of the tree.
            ``None``: all graphs where they are small, at most 128 MiB by an estimate from the first step, and batches
            are a list or tuple; else 1.
        offload: points lie on the CPU, and ``checkpoint=None`` is 1; graphs stay where they are.
        memory: for ``"auto"``, bytes of tensors above what is held when the steps begin, on the devices that the params
            are on. The first step that is differentiated is made once more to measure it, with the random numbers put
            back. The peak that this predicts is logged (``logging.getLogger("hyperopt_ftp")``, level INFO). Later steps
            may take more, by larger batches; the outer loss, and what a kernel takes for itself (a convolution's
            workspace), come on top.
        compile: run each step, and its derivative, as a program by ``torch.compile`` (``True``: inductor; or the name
            of another backend). No graph is kept. Small networks run up to about twice as fast, after some 20 seconds
            of compilation (a transformer: a minute or two; EfficientNet-Lite0: not done after 52 minutes), as a line
            of the log tells. Programs are kept for the process, by the code of optimizer and loss. Another shape,
            dtype or value that the loss closes over compiles anew, with a warning that says what has changed; where
            torch can, a size that varies becomes a variable of the program. Results are those of the steps as they are
            written, to rounding; random numbers are as reproducible, but may be others.

    Raises:
        ValueError: an option outside what is listed, fewer batches than ``truncate``, or too little ``memory``: the
            error says how much is needed; float16 params with ``compile``, which does not scale adjoints.
        RuntimeError: a step that cannot be compiled, a loss with a ``torch.autograd.Function`` in it among them, whose
            backward torch would not differentiate; ``compile`` under autocast; a training loss that writes into
            tensors in place (BatchNorm's statistics), or that differs when a step is computed again; one without a
            second derivative.

    Warns:
        UserWarning: a step was compiled anew.

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
    checkpoint: CheckpointEvery | None = None
    offload: bool = False
    memory: int | None = None
    compile: Compile = False

    def __post_init__(self) -> None:
        check_count("truncate", self.truncate, "steps", none=True)
        check_flag("offload", self.offload)
        check_compile(self.compile)
        check_count("memory", self.memory, "bytes", none=True)
        number = isinstance(self.checkpoint, int) and not isinstance(self.checkpoint, bool) and self.checkpoint >= 1
        words = self.checkpoint in ("sqrt", "log", "auto")
        if not (number or words or self.checkpoint is None or self.checkpoint is False):
            raise ValueError(
                "checkpoint must be a number of steps >= 1, 'sqrt', 'log', 'auto', False or None, got "
                f"{self.checkpoint!r}"
            )
        if self.checkpoint == "auto" and self.memory is None:
            raise ValueError("checkpoint='auto' keeps what fits into memory: give memory= a number of bytes, as 2**30")
        if self.checkpoint != "auto" and self.memory is not None:
            raise ValueError(
                f"memory={self.memory} is for checkpoint='auto', but checkpoint is {self.checkpoint!r}: give 'auto', "
                "or leave memory out"
            )
        if self.checkpoint is False and self.offload:
            raise ValueError("checkpoint=False keeps graphs, which stay where they are: leave offload out")
        if self.compile and (self.checkpoint is False or self.checkpoint == "auto"):
            raise ValueError(
                f"checkpoint={self.checkpoint!r} keeps graphs, and a compiled step has none: give a number of steps, "
                "'sqrt' or 'log', or leave compile out"
            )

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
        plan, losses = self.planned(count - first), []
        walk = self.walk(steps, start, first)
        points = Checkpoints(start, plan.parts, first, self.offload)
        params, state = fresh((start.params, start.state), False)[1]
        with walk.setting():
            for k in range(count):
                if k == first and isinstance(walk, EagerWalk) and self.memory is not None:
                    sizes = sizes_of(walk, start, k, params, state, self.offload)
                    *sizes, least = steps.agreed([*sizes, -self.memory])  # a process may have less than another
                    plan = self._within(-least, Sizes(*sizes))
                    points = Checkpoints(start, plan.parts, first, self.offload)
                if k >= first:
                    points.visit(k, params, state)
                params, state, loss = walk.forward(k, params, state, keep=k >= count - plan.graphs)
                losses.append(loss)
                unasked = k == first and self.checkpoint is None and plan.graphs > 0
                if unasked and isinstance(walk, EagerWalk) and not walk.keep_if_small(k, params, plan.graphs):
                    plan = with_graphs(plan.graphs, 0)
        return Trained(params, state, torch.stack(losses)), _Run(start, first, walk, points)

    def pullback(self, steps: Steps, residual: Any, cotangents: Trained) -> Start:
        if isinstance(residual, Start):
            return self._pullback_under_transform(steps, residual, cotangents)
        run: _Run = residual
        start, walk, points = run.start, run.walk, run.points
        if keeps_graph():
            walk, points = walk.again(), points.again()
        back_p: Row = [*known(cotangents.params)]
        back_s: Row = [*known(cotangents.state)]
        sums: Row = [None] * len(chosen(start.hparams, steps.wanted.hparams))
        of_batches: dict[int, Row] = {}
        with walk.setting():
            for k in range(len(start.batches) - 1, run.first - 1, -1):
                back_p, back_s, more, of_batches[k] = walk.back(k, points.at(k, walk.step), back_p, back_s)
                sums = added(sums, more)
        walk.compare()
        whole = self.truncate is None
        return Start(
            cotangents_of(start.hparams, sums, steps.wanted.hparams),
            cotangents_of(start.params, back_p) if whole else None,
            cotangents_of(start.state, back_s) if whole else None,
            _batches(steps, run, of_batches),
        )

    def walk(self, steps: Steps, start: Start, first: int) -> EagerWalk | CompiledWalk:
        if self.compile:
            return CompiledWalk(steps, start, self.compile)
        knobs, hparams = fresh(start.hparams, steps.wanted.hparams)
        return EagerWalk(steps, start._replace(hparams=hparams), knobs, first, self.truncate is None)

    def planned(self, steps: int) -> Plan:
        """What is kept of so many steps, as far as that does not depend on what the first of them takes."""
        if self.checkpoint == "log":
            return points_of_tree()
        if self.checkpoint == "auto":
            return points_of_every(1)
        if not (self.checkpoint or self.compile or self.offload):
            return with_graphs(steps, steps)
        return points_of_every(max(1, math.isqrt(steps)) if self.checkpoint == "sqrt" else int(self.checkpoint or 1))

    def _within(self, memory: int, sizes: Sizes) -> Plan:
        plan, peak = affordable(memory, sizes)
        text = "Unroll(checkpoint='auto', memory=%d) keeps of %d steps: %s; predicted peak: %d bytes"
        logging.getLogger("hyperopt_ftp").info(text, memory, sizes.steps, plan.words, peak)
        return plan

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


def _batches(steps: Steps, run: _Run, found: dict[int, Row]) -> list[Any] | None:
    if not isinstance(steps.wanted.batches, (list, tuple)):
        return None
    nothing = [None] * len(tree.leaves(run.start.batches))
    return [
        cotangents_of(batch, found.get(k, nothing), steps.wanted.batches[k])
        for k, batch in enumerate(run.start.batches)
    ]
