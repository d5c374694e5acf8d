"""Exact reverse mode through K steps, with a choice of what is kept of them."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...calls import check_compile, check_count, check_flag, explained
from ...types import CheckpointEvery, Compile, Offload, Params, State
from ..compiled.steps import CompiledSteps, compilable, compiled_loop
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import OptionalTensors, added, cotangents_of, detached, is_narrow, present, select_floats
from ..core.node import Method, Run, through_node
from ..core.problem import InnerProblem, PlainLoop, has_derivative
from ..core.replay import Replay, RngState
from ..core.second_order import twice_differentiable
from ..core.strategy import Costs, PlainSteps, Strategy, memory_of_steps
from ..core.torch_private import keeps_graph, under_transform
from ..unrolling.budget import Sizes, affordable, graphs_fit, peak_of, sizes_of
from ..unrolling.eager import EagerSteps
from ..unrolling.plans import Plan, backward_schedule, points_of_every, points_of_tree, root_of, with_graphs
from ..unrolling.points import Checkpoints, links_pay


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

    With ``checkpoint=False``, and by default while all graphs are kept, autograd owns them, as in a plain loop: what
    the loss and the update close over is differentiated, and the loss may write in place (BatchNorm's statistics).
    Elsewhere both are errors, since a derivative would be lost or a step would write twice; also with 16-bit params,
    several processes, and losses that checkpoint activations.

    Args:
        truncate: differentiate the last ``truncate`` steps only. The point before them is a constant in derivatives of
            every order. ``None``: all steps.
        checkpoint: what is kept. ``False``: all graphs, the fastest. n: the point of every n-th step; those between are
            recomputed. ``"sqrt"``: n = sqrt(K), rounded up. ``"log"``: points in a tree of arity 4, for thousands of
            steps. With ``d = ceil(log_4 K)``, at most ``1 + 3 d`` points exist at once, and ``K (3 d / 4 - 1) + 1``
            steps are recomputed (K = 1000: 16 points, 2.75 K steps). Of points in a row three in four are kept as the
            gradient that leads to them, unless the state is small beside the params: their updates run again.
            ``None``: ``False`` if all graphs take at most 128 MiB, estimated from the first step, and the batches are a
            list or tuple; else 1.
        offload: keep points on the CPU, of a CUDA device in page-locked memory, so that no copy is waited for.
            ``checkpoint=None`` is then 1. Graphs are not moved. ``"disk"``: in files of the temporary directory (the
            environment's ``TMPDIR``, which should not lie in memory), each as large as params and state.
        memory: in place of ``checkpoint``: bytes of tensors on the params' devices, above what is held at the start.
            The plan that recomputes least within them is chosen. One or two extra steps measure what a step takes. The
            predicted peak is logged (``logging.getLogger("hyperopt_ftp")``, level INFO). It leaves out the outer loss,
            workspace inside kernels, and larger later batches.
        first_order: training gradients count as constants, and updates alone are differentiated (FOMAML, arXiv
            1703.03400, section 5.2): ``lambda_p <- pbar, lambda_s <- sbar, dL/dh += hbar``. No product with second
            derivatives is made, and no graph of the loss is kept. ``hparams["loss"]`` and batches have no derivative.
            For plain params of one process.
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
            autocast; a training loss that writes in place where autograd does not own the graph, that differs when a
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
    offload: Offload = False
    memory: int | None = None
    compile: Compile = False
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.truncate in ("sqrt", "log"):
            raise ValueError(f"truncate comes first, got {self.truncate!r}; write Unroll(checkpoint={self.truncate!r})")
        check_count("truncate", self.truncate, "steps", none=True)
        if not isinstance(self.offload, bool) and self.offload != "disk":
            raise ValueError(f"offload must be True, False or 'disk', got {self.offload!r}")
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
        check_flag("first_order", self.first_order)
        if self.first_order and (self.compile or self.checkpoint or self.offload or self.memory):
            raise ValueError(
                "first_order=True keeps the graphs of updates alone, which are small: leave out checkpoint, offload, "
                "memory and compile"
            )

    @property
    def stepwise(self) -> bool:
        few = self.truncate in (None, 1) and self.checkpoint in (None, False, 1)
        return few and not (self.offload or self.memory or self.compile)

    @property
    def constant_start(self) -> bool:
        return self.truncate is not None

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        first = self._first(inputs)
        if under_transform() or self._may_keep_graphs(problem, inputs):
            return self._by_graphs(problem, inputs, first)
        compile = self.compile and compilable(self.compile, problem, inputs.params)
        if not compile:
            return self._by_points(problem, inputs, first)
        train, values = partial(self._compiled, first, compile), partial(compiled_loop, compile=compile)
        method = Method(
            "Unroll", self._back_compiled, train, self.truncate is None, needs={"compiled": True}, values=values
        )
        return through_node(method, problem, inputs)

    def _first(self, inputs: TrainInputs) -> int:
        """The first step that is differentiated."""
        count = len(inputs.batches)
        if self.truncate is not None and count < self.truncate:
            raise ValueError(f"batches has {count} steps, fewer than truncate = {self.truncate}")
        return count - (self.truncate or count)

    def _may_keep_graphs(self, problem: InnerProblem, inputs: TrainInputs) -> bool:
        """Whether autograd can own the graph of all steps, which keeps what their backward passes need."""
        if self.first_order and (not problem.alone or is_narrow(inputs.params)):
            raise ValueError(
                "first_order=True is for plain params of float32 or float64 in one process, without hft.data_parallel: "
                "convert the params, or leave first_order out"
            )
        if self.compile or not problem.alone or is_narrow(inputs.params):
            return False
        # A sequence of somebody's own may give the same memory for each step, and a graph does not copy it.
        chooses = self.chooses and not self.offload and isinstance(inputs.batches, (list, tuple))
        return chooses or self.checkpoint is False or self.first_order

    def _by_graphs(self, problem: InnerProblem, inputs: TrainInputs, first: int) -> TrainOutputs:
        """The plain loop; or points, where the first step shows that graphs are large, or cannot be kept."""
        derived, transform = has_derivative(inputs), under_transform()
        if derived and not transform:
            return self._by_graphs_or_points(problem, inputs, first)
        with twice_differentiable() if transform else nullcontext():
            guarded, verdict = self._guarded(problem, inputs, derived)
            if transform or not torch.is_grad_enabled() or not verdict.captures:
                return self._loop(guarded, inputs, first).run().end()
        with twice_differentiable():  # of what loss and update capture, a derivative may be asked for
            guarded, verdict = self._guarded(problem, inputs, True, of_captured=True)
            loop = self._loop(guarded, inputs, first).run(first + 1)
            if loop.has_graph:
                hooks = verdict.has_hooks and not self.first_order
                if hooks or not self._fits(guarded, inputs, first):
                    return self._by_graphs_or_points(problem, inputs, first)  # which says why it cannot be done
                loop.problem = self._guarded(problem, inputs, True)[0]
                return loop.run().end()
        return loop.run().end()

    def _by_graphs_or_points(self, problem: InnerProblem, inputs: TrainInputs, first: int) -> TrainOutputs:
        with twice_differentiable():
            guarded, verdict = self._guarded(problem, inputs, True)
            # Where the loss is known, what is kept is decided before the first step.
            rng = None if verdict.loss and self.truncate is None else Replay().now()
            loop, left = self._loop(guarded, inputs, first), len(inputs.batches) - first
            if not verdict.loss:
                loop.run(1)
            fits = self._fits(guarded, inputs, first)
            if not fits and verdict.refusal is not None:
                raise type(verdict.refusal)(f"{verdict.refusal}; or keep all graphs: hft.Unroll(checkpoint=False)")
            # What is checkpointed in the loss is computed again in the backward pass, under its settings.
            if fits and (self.first_order or not verdict.has_hooks):
                return loop.run().end()
            plan = with_graphs(left, left) if fits else points_of_every(1)
            return self._by_points(problem, inputs, first, plan, loop, rng)

    def _fits(self, guarded: InnerProblem, inputs: TrainInputs, first: int) -> bool:
        """Whether the graphs of all steps may be kept."""
        return self.first_order or not self.chooses or graphs_fit(guarded, inputs, len(inputs.batches) - first)

    def _guarded(
        self, problem: InnerProblem, inputs: TrainInputs, derived: bool, **needs: bool
    ) -> tuple[InnerProblem, Any]:
        """The problem with checks, and what they have found."""
        needs |= {"constant_gradient": self.first_order, "plain_loop": True}
        guarded = problem.guarded(inputs, derived=derived, closed=False, **needs)
        assert guarded.guards is not None
        return guarded, guarded.guards.verdict

    def _loop(self, guarded: InnerProblem, inputs: TrainInputs, first: int) -> PlainLoop:
        """The plain loop, with those steps done whose end is a constant, in derivatives of any order."""
        loop = PlainLoop(guarded, inputs, self.first_order)
        if self.truncate is not None:
            with torch.no_grad():
                loop.run(first).detach()
        return loop

    def _by_points(
        self, problem: InnerProblem, inputs: TrainInputs, first: int, plan: Plan | None = None,
        loop: PlainLoop | None = None, rng: RngState | None = None,
    ) -> TrainOutputs:  # fmt: skip
        """A node that keeps what is planned.

        ``loop``: with steps that have been made; ``rng``: the random state before them.
        """
        train = partial(self._train, first, plan, loop, rng)
        method = Method("Unroll", self._back, train, self.truncate is None, needs={"plain_loop": True})
        return through_node(method, problem, inputs, rng)

    def _train(
        self, first: int, plan: Plan | None, loop: PlainLoop | None, rng: RngState | None, problem: InnerProblem,
        inputs: TrainInputs,
    ) -> tuple[TrainOutputs, Any]:  # fmt: skip
        count, steps = len(inputs.batches), EagerSteps(problem, inputs, first, self.truncate is None)
        plan = plan or self.planned(count - first, links_pay(inputs))
        points = Checkpoints(inputs, plan, first, self.offload)
        params, state, losses = inputs.params, inputs.state, list[Tensor]()
        if loop is not None and loop.k:
            points.visit(0, params, state, rng)
            params, state, _ = detached(loop.end())
            losses += loop.losses
        begins = max(first, len(losses))
        for k in range(len(losses), count):
            if k == first and self.memory is not None:
                plan = self._plan_within(self.memory, problem, steps, inputs, params, state)
                points = Checkpoints(inputs, plan, first, self.offload)
            if k == begins:
                steps.keep_graphs(plan.graphs)
            params, state, loss = steps.forward(k, points, params, state)
            if k == first and self.chooses and not graphs_fit(problem, inputs, count - first):
                steps.drop_graphs()
            losses.append(loss)
        return TrainOutputs(params, state, torch.stack(losses)), (first, steps, points)

    def _back(self, problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        first, steps, points = run.note
        if keeps_graph():
            steps, points = steps.for_retained_backward(), points.for_retained_backward()
        back_p: OptionalTensors = [*present(cotangents.params)]
        back_s: OptionalTensors = [*present(cotangents.state)]
        sums: OptionalTensors = [None] * len(select_floats(run.inputs.hparams, problem.needs_grad.hparams))
        of_batches: dict[int, OptionalTensors] = {}
        for k in range(len(run.inputs.batches) - 1, first - 1, -1):
            back_p, back_s, more, of_batches[k] = steps.back(k, points, back_p, back_s)
            sums = added(sums, more)
        steps.compare()
        return self._found(problem, run.inputs, back_p, back_s, sums, of_batches)

    def _compiled(
        self, first: int, compile: Compile, problem: InnerProblem, inputs: TrainInputs
    ) -> tuple[TrainOutputs, Any]:
        steps = CompiledSteps(problem, inputs, compile, first, self._every(len(inputs.batches) - first))
        return steps.forward(), steps

    def _back_compiled(self, problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        return self._found(problem, run.inputs, *run.note.back(cotangents))

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

    def costs(self, problem: InnerProblem, inputs: TrainInputs) -> Costs:
        count, first = len(inputs.batches), self._first(inputs)
        if self.first_order:
            memory = memory_of_steps(replace(self, truncate=None), problem, inputs, count - first)
            return Costs(count, 0, "the graphs of all updates", memory=memory)
        steps, probed = EagerSteps(problem, inputs, first, self.truncate is None), self.memory is not None
        links = links_pay(inputs)
        plan = self.planned(count - first, links)
        sizes = sizes_of(steps, inputs, first, inputs.params, inputs.state, self.offload)
        if self.memory is not None:
            plan = affordable(self.memory, sizes, links)[0]
        left = count - first
        if self.chooses and plan.graphs > 0 and not graphs_fit(problem, inputs, left):
            plan = with_graphs(left, 0)
        again = sum(made for _, _, made in backward_schedule(plan.parts, 0, left))  # on the way to a point
        gradients = count + again + max(0, left - plan.graphs) + probed
        products = left - (not steps.needs_hvp(first)) + probed
        owned = plan.graphs == left and self._may_keep_graphs(problem, inputs)
        memory = memory_of_steps(PlainSteps(), problem, inputs, left) if owned else peak_of(sizes, plan)
        return Costs(gradients, products, plan.words, memory=memory)

    @property
    def chooses(self) -> bool:
        """Whether graphs are kept if they are small."""
        return self.checkpoint is None and self.memory is None

    def planned(self, steps: int, links: bool) -> Plan:
        """What is kept of so many steps, where the first does not decide it."""
        if self.checkpoint == "log":
            return points_of_tree(links)
        if not (self.checkpoint or self.offload or self.memory):
            return with_graphs(steps, steps)
        return points_of_every(self._every(steps), links)

    def _every(self, steps: int) -> int:
        return root_of(steps) if self.checkpoint == "sqrt" else int(self.checkpoint or 1)

    def _plan_within(
        self, memory: int, problem: InnerProblem, steps: EagerSteps, inputs: TrainInputs, params: Params, state: State
    ) -> Plan:
        sizes = sizes_of(steps, inputs, steps.first, params, state, self.offload)
        *numbers, least = problem.agreed([*sizes, -memory])  # a process may have less than another
        plan, peak = affordable(-least, Sizes(*numbers), links_pay(inputs))
        text = "Unroll(memory=%d) keeps of %d steps: %s; predicted peak: %d bytes"
        logging.getLogger("hyperopt_ftp").info(text, memory, sizes.steps, plan.words, peak)
        return plan
