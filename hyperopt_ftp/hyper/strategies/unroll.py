"""Exact reverse mode through K steps, with a choice of what is kept of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...calls import check_compile, check_count, check_flag, explained
from ...types import CheckpointEvery, Compile, Params, State
from ..compiled.steps import CompiledSteps, compiled_loop
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import (
    OptionalTensors,
    added,
    combine,
    cotangents_of,
    detached,
    detached_leaves,
    floats,
    present,
    select_floats,
)
from ..core.problem import InnerProblem
from ..core.strategy import Strategy
from ..core.transforms import keeps_graph, under_transform
from ..unrolling.budget import Sizes, affordable
from ..unrolling.checkpoints import Checkpoints
from ..unrolling.eager import EagerSteps
from ..unrolling.probe import sizes_of
from ..unrolling.schedules import Plan, points_of_every, points_of_tree, with_graphs


@explained()
@dataclass(frozen=True)
class Unroll(Strategy):
    """Reverse mode through all steps, second-order terms included (backpropagation through the optimizer).

    With ``p_{k+1}, s_{k+1} = update(g_k, s_k, p_k; h)`` and ``g_k = d train_loss / d p_k``, the adjoints go back by::

        (gbar, sbar, pbar, hbar) = vjp of update at step k with (lambda_p, lambda_s)
        lambda_p <- pbar + H_k gbar,   lambda_s <- sbar,   dL/dh += hbar + (d^2 train_loss / dh dp)^T gbar

    ``H_k gbar`` is a Hessian-vector product. The cotangent of a batch is ``(d^2 train_loss / db dp)^T gbar``.

    The options trade memory for time. Of a step either the graph is kept, or only the point: the params and state where
    it begins. Then its gradient is computed again in the backward pass. Under a ``torch.func`` transform, and with
    ``create_graph=True``, all graphs are kept, and no option but ``truncate`` has an effect.

    Args:
        truncate: differentiate the last ``truncate`` steps only, from a constant point. ``None``: all steps.
        checkpoint: what is kept. ``False``: all graphs, the fastest. n: the point of every n-th step; those between are
            recomputed. ``"sqrt"``: n = sqrt(K). ``"log"``: points in a tree of arity 4, for thousands of steps. With
            ``d = ceil(log_4 K)``, at most ``1 + 3 d`` points exist at once, and ``K (3 d / 4 - 1) + 1`` steps are
            recomputed (K = 1000: 16 points, 2.75 K steps). ``None``: ``False`` if all graphs take at most 128 MiB,
            estimated from the first step, and the batches are a list or tuple; else 1.
        offload: keep points on the CPU. ``checkpoint=None`` is then 1. Graphs are not moved.
        memory: in place of ``checkpoint``: bytes of tensors on the params' devices, above what is held at the start.
            The plan that recomputes least within them is chosen. One or two extra steps measure what a step takes. The
            predicted peak is logged (``logging.getLogger("hyperopt_ftp")``, level INFO). It leaves out the outer loss,
            workspace inside kernels, and larger later batches.
        compile: compile all steps into one program, and the backward pass into another, by ``torch.compile``. ``True``:
            inductor, or the name of another backend. Small networks run several times as fast, after about 20 seconds
            of compilation for any number of steps (a transformer: one or two minutes; logged). Only points are kept.
            Another shape, dtype or value that the loss closes over recompiles, with a warning. Batches may have up to
            three different shapes. Results equal those of uncompiled steps up to rounding, but random numbers differ:
            they come from one seed for each step, drawn from torch's default generator. Without a C++ compiler, or
            with torch before 2.13, steps run uncompiled, with a warning.

    Raises:
        ValueError: options that do not go together; fewer batches than ``truncate``; too little ``memory`` (the error
            says how much is needed); with ``compile``, float16 params, whose adjoints it does not scale, or batches of
            more than three shapes.
        RuntimeError: a step that cannot be compiled, such as one with a ``torch.autograd.Function``; ``compile`` under
            autocast; a training loss that writes into tensors in place (BatchNorm's statistics), that differs when a
            step is recomputed, or that has no second derivative.

    Warns:
        UserWarning: something was recompiled, or cannot be compiled here.

    Random numbers (dropout) are drawn as in a plain loop. Recomputed steps draw the same ones. Adjoints of 16-bit
    weights are float32.

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

    twice = False

    def __post_init__(self) -> None:
        check_count("truncate", self.truncate, "steps", none=True)
        check_flag("offload", self.offload)
        check_compile(self.compile)
        check_count("memory", self.memory, "bytes", none=True)
        number = isinstance(self.checkpoint, int) and not isinstance(self.checkpoint, bool) and self.checkpoint >= 1
        if not (number or self.checkpoint in ("sqrt", "log", None) or self.checkpoint is False):
            raise ValueError(
                f"checkpoint must be a number of steps >= 1, 'sqrt', 'log', False or None, got {self.checkpoint!r}"
            )
        if self.memory is not None and self.checkpoint is not None:
            raise ValueError(f"memory={self.memory} decides what is kept, and so does checkpoint={self.checkpoint!r}")
        if self.checkpoint is False and self.offload:
            raise ValueError("checkpoint=False keeps graphs, which stay where they are: leave offload out")
        if self.compile and (self.checkpoint is False or self.checkpoint == "log" or self.offload or self.memory):
            raise ValueError(
                "compile=True keeps points on the device, of every step or of every n-th, and no graphs: give no more "
                "than checkpoint=, a number of steps or 'sqrt', or leave compile out"
            )

    @property
    def exact(self) -> bool:
        return self.truncate is None

    def run(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        count = len(inputs.batches)
        if self.truncate is not None and count < self.truncate:
            raise ValueError(f"batches has {count} steps, fewer than truncate = {self.truncate}")
        if under_transform():
            return problem.loop(inputs), inputs
        first = count - self.truncate if self.truncate else 0
        if self.compile:
            run = CompiledSteps(problem, inputs, self.compile, first, self._every(count - first))
            return run.forward(), run
        steps, plan, losses = self.steps(problem, inputs, first), self.planned(count - first), []
        points = Checkpoints(inputs, plan.parts, first, self.offload)
        params, state = inputs.params, inputs.state
        for k in range(count):
            if k == first and self.memory is not None:
                plan = self._plan_within(self.memory, problem, steps, inputs, params, state)
                points = Checkpoints(inputs, plan.parts, first, self.offload)
            if k == first:
                steps.keep_graphs(plan.graphs, if_small=self.chooses)
            if k >= first:
                points.visit(k, params, state)
            params, state, loss = steps.forward(k, params, state)
            losses.append(loss)
        params, state = detached((params, state))
        return TrainOutputs(params, state, torch.stack(losses)), (inputs, first, steps, points)

    def pullback(self, problem: InnerProblem, residual: Any, cotangents: TrainOutputs) -> TrainInputs:
        if isinstance(residual, TrainInputs):
            return self._pullback_under_transform(problem, residual, cotangents)
        if isinstance(residual, CompiledSteps):
            return self._found(problem, residual.inputs, *residual.back(cotangents))
        inputs, first, steps, points = residual
        if keeps_graph():
            steps, points = steps.for_retained_backward(), points.for_retained_backward()
        back_p: OptionalTensors = [*present(cotangents.params)]
        back_s: OptionalTensors = [*present(cotangents.state)]
        sums: OptionalTensors = [None] * len(select_floats(inputs.hparams, problem.needs_grad.hparams))
        of_batches: dict[int, OptionalTensors] = {}
        k = len(inputs.batches)
        while k > first:
            k, back_p, back_s, more, rows = steps.back(k, points, back_p, back_s)
            sums = added(sums, more)
            of_batches |= enumerate(rows, k)
        steps.compare()
        return self._found(problem, inputs, back_p, back_s, sums, of_batches)

    def _found(
        self, problem: InnerProblem, inputs: TrainInputs, back_p: OptionalTensors, back_s: OptionalTensors,
        back_h: OptionalTensors, of_batches: dict[int, OptionalTensors],
    ) -> TrainInputs:  # fmt: skip
        asked, whole, batches = problem.needs_grad, self.truncate is None, None
        if problem.asks_batches:
            batches = cotangents_of(inputs.batches, [], False)
            for k, row in of_batches.items():
                batches[k] = cotangents_of(inputs.batches[k], row, asked.batches[k])
        return TrainInputs(
            cotangents_of(inputs.hparams, back_h, asked.hparams),
            cotangents_of(inputs.params, back_p) if whole else None,
            cotangents_of(inputs.state, back_s) if whole else None,
            batches,
        )

    def values(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        return compiled_loop(problem, inputs, self.compile) if self.compile else problem.loop(inputs)

    def steps(self, problem: InnerProblem, inputs: TrainInputs, first: int) -> EagerSteps:
        knobs, hparams = detached_leaves(inputs.hparams, problem.needs_grad.hparams)
        return EagerSteps(problem, inputs._replace(hparams=hparams), knobs, first, self.truncate is None)

    @property
    def chooses(self) -> bool:
        """Whether graphs are kept if they are small."""
        return self.checkpoint is None and self.memory is None

    def planned(self, steps: int) -> Plan:
        """What is kept of so many steps, if the size of the first does not decide it."""
        if self.checkpoint == "log":
            return points_of_tree()
        if not (self.checkpoint or self.offload or self.memory):
            return with_graphs(steps, steps)
        return points_of_every(self._every(steps))

    def _every(self, steps: int) -> int:
        return max(1, math.isqrt(steps)) if self.checkpoint == "sqrt" else int(self.checkpoint or 1)

    def _plan_within(
        self, memory: int, problem: InnerProblem, steps: EagerSteps, inputs: TrainInputs, params: Params, state: State
    ) -> Plan:
        sizes = sizes_of(steps, inputs, steps.first, params, state, self.offload)
        *numbers, least = problem.agreed([*sizes, -memory])  # a process may have less than another
        plan, peak = affordable(-least, Sizes(*numbers))
        text = "Unroll(memory=%d) keeps of %d steps: %s; predicted peak: %d bytes"
        logging.getLogger("hyperopt_ftp").info(text, memory, sizes.steps, plan.words, peak)
        return plan

    def _pullback_under_transform(
        self, problem: InnerProblem, inputs: TrainInputs, cotangents: TrainOutputs
    ) -> TrainInputs:
        count = len(inputs.batches)
        first = count - (self.truncate or count)
        batches = [inputs.batches[k] for k in range(count)]
        head = problem.loop(inputs._replace(batches=batches[:first])) if first else inputs

        def last(h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            hparams, rest = combine(inputs.hparams, h), combine(batches[first:], b)
            end = problem.loop(TrainInputs(hparams, head.params, head.state, rest))
            return floats(end.params), floats(end.state)

        back = torch.func.vjp(last, floats(inputs.hparams), floats(batches[first:]))[1]
        of_hparams, of_last = back((present(cotangents.params), present(cotangents.state)))
        found = None
        if problem.needs_grad.batches is not False:
            found = [*cotangents_of(batches[:first], [], False), *cotangents_of(batches[first:], of_last)]
        return TrainInputs(cotangents_of(inputs.hparams, of_hparams), None, None, found)
