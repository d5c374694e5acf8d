"""Training as a node of the autograd graph, whose derivative is a strategy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...dtensors import is_dtensor, layout, like, placed
from .graph import nodes_below
from .inputs import TrainInputs, TrainOutputs
from .leaves import is_float
from .problem import InnerProblem
from .replay import Replay, RngState, refuse_other_losses
from .second_order import twice_differentiable
from .strategy import Strategy, checked_outputs, cotangent_leaves
from .transforms import backward_has_derivative, keeps_graph, unwrap_dead
from .vjp import transposed


@dataclass
class TrainJob:
    """What a node of the graph needs beside its input tensors."""

    strategy: Strategy
    problem: InnerProblem
    first: InnerProblem  # the same where training runs inside the node's function, without the transforms around it
    again: Callable[[], InnerProblem]  # the same for a derivative of the derivative
    leaves: list[Any]  # of the inputs
    rebuild: Callable[[Sequence[Any]], TrainInputs]
    places: list[int]  # of the leaves that are inputs of the node
    transform: bool  # whether one of torch.func was active
    replay: Replay
    rng: RngState  # when training began
    residual: Any = None  # of a run without a transform
    ended: Any = None  # the random state after a run under one
    losses: Any = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)  # of all that the run went by
    end: list[Any] = field(default_factory=list)  # leaves of (params, state), outputs of the node as their dtypes
    rebuild_end: Callable[[Sequence[Any]], Any] = tuple

    def inputs(self, tensors: Sequence[Tensor]) -> TrainInputs:
        leaves = list(self.leaves)
        for i, x in zip(self.places, tensors, strict=True):
            leaves[i] = x
        return self.rebuild(leaves)

    def outputs(self, trained: TrainOutputs) -> list[Tensor]:
        return [x for x in tree.leaves((trained.params, trained.state)) if isinstance(x, Tensor)]

    def trained(self, outputs: Sequence[Tensor]) -> TrainOutputs:
        values = iter(outputs)
        params, state = self.rebuild_end([next(values) if isinstance(x, torch.dtype) else x for x in self.end])
        return TrainOutputs(params, state, outputs[-1])

    def pullback(self, tensors: Sequence[Tensor], residual: Any, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Cotangents of the node's inputs from those of its floating-point outputs."""
        values = iter(cotangents)
        floating = [isinstance(x, torch.dtype) and x.is_floating_point for x in self.end]
        params, state = self.rebuild_end([next(values) if yes else None for yes in floating])
        inputs = self.inputs(tensors)
        self._check_versions()
        found = self.strategy.pullback(self.problem, residual, TrainOutputs(params, state, None))
        leaves = cotangent_leaves(self.strategy, inputs, found)
        return [_as(leaves[i], x) for i, x in zip(self.places, tensors, strict=True)]

    def residual_at(self, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """Under a transform: of the run, of which only inputs and outputs can be kept, or of another one."""
        found = None
        if not backward_has_derivative():  # which would take the node's own for that of the outputs
            found = self.strategy.residual_of(self.inputs(tensors), self.trained(outputs), self.replay, self.ended)
        return self.residual_again(tensors) if found is None else found

    def residual_again(self, tensors: Sequence[Tensor]) -> Any:
        run = self.strategy.run
        found = self.replay.run(self.rng, lambda: run(self.problem, self.inputs(tensors)))
        trained, residual = checked_outputs(self.strategy, found)
        refuse_other_losses(self.losses, trained.losses)
        return residual

    def pullback_with_graph(self, tensors: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """For ``create_graph=True``: the steps are repeated, and differentiated as they are."""
        if not self.strategy.exact:
            raise RuntimeError(
                f"a derivative of the derivative by {type(self.strategy).__name__} was asked for (create_graph=True), "
                "which has no graph here; take both by torch.func, such as torch.func.grad of a function that calls "
                "train"
            )
        self._check_versions()
        aliases = [x.view_as(x) for x in tensors]  # one input may depend on another outside
        trained = self.replay.run(self.rng, lambda: self.again().loop(self.inputs(aliases)))
        refuse_other_losses(self.losses, trained.losses)
        outputs = [x for x in self.outputs(trained) if is_float(x)]
        pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return [None] * len(tensors)
        ys, vs = zip(*pairs, strict=True)
        if any(map(is_dtensor, ys)):
            _refuse_cut_graphs(ys)
        return torch.autograd.grad(ys, aliases, vs, create_graph=True, allow_unused=True)

    def _check_versions(self) -> None:
        for x, version in self.versions:
            if x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that train was given, or has returned, was modified by an "
                    "inplace operation before the backward pass, which needs it as it was; clone() it"
                )


class TrainNode(torch.autograd.Function):
    """The node of the graph: outputs are the tensors of (params, state), and the losses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(job: TrainJob, *tensors: Tensor) -> tuple[Tensor, ...]:
        with twice_differentiable():
            inputs = job.inputs([x.detach() for x in tensors])
            trained, residual = checked_outputs(job.strategy, job.strategy.run(job.first, inputs))
        # The node may not hold its own outputs: it would never be freed.
        outputs = job.outputs(trained)
        for x in outputs:
            if x.is_complex():
                raise ValueError(
                    f"the optimizer's state has a complex tensor of shape {tuple(x.shape)}: derivatives go through "
                    "real ones; keep torch.view_as_real of it"
                )
        end = tree.map_tree(lambda x: x.dtype if isinstance(x, Tensor) else x, (trained.params, trained.state))
        job.end, job.rebuild_end = tree.flatten(end)
        job.losses = trained.losses
        if job.transform:
            job.ended = job.replay.now()
        else:
            job.residual = residual
            job.versions = [(x, x._version) for x in (*job.leaves, *outputs) if isinstance(x, Tensor)]
        return (*(x.detach() for x in outputs), trained.losses.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, *tensors = inputs
        ctx.job = job
        ctx.set_materialize_grads(False)  # zeros for the moments would be as large as they are
        ctx.differentiable = [is_float(x) for x in output[:-1]] + [False]
        ctx.mark_non_differentiable(*(x for x, yes in zip(output, ctx.differentiable, strict=True) if not yes))
        ctx.layouts = [layout(x) for x in output]
        saved = (*tensors, *output) if job.transform else tensors
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        rows = zip(output, ctx.differentiable, strict=True)
        ctx.zeros = [x.new_zeros(()).expand(x.shape) if yes else None for x, yes in rows]

    @staticmethod
    @twice_differentiable()
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        job: TrainJob = ctx.job
        rows = zip(cotangents, ctx.zeros, ctx.layouts, ctx.differentiable, strict=True)
        given = [placed(unwrap_dead(zero if v is None else v), at) for v, zero, at, yes in rows if yes]
        saved, count = [unwrap_dead(x) for x in ctx.saved_tensors], len(job.places)
        tensors = saved[:count]
        if job.transform:
            residual = job.residual_at(tensors, saved[count:])
            found = job.replay.run(job.rng, lambda: job.pullback(tensors, residual, given))
        elif torch.is_grad_enabled():
            found = job.pullback_with_graph(tensors, given)
        else:
            with job.replay.without_autocast():
                found = job.pullback(tensors, job.residual, given)
            if not keeps_graph():
                job.residual, job.versions = None, []
        return (None, *found)

    @staticmethod
    @twice_differentiable()
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # the first is the job's
        """The transpose of the pullback, which is linear in its cotangents."""
        job: TrainJob = ctx.job
        tensors = [unwrap_dead(x) for x in ctx.saved_tensors[: len(job.places)]]
        residual = job.residual_again(tensors)

        def back(cotangents: list[Tensor]) -> list[Tensor]:
            found = job.replay.run(job.rng, lambda: job.pullback(tensors, residual, cotangents))
            pairs = [(v, x) for v, x in zip(found, tensors, strict=True) if is_float(x)]
            return [torch.zeros_like(x) if v is None else v for v, x in pairs]

        zeros = [x.contiguous() for x, yes in zip(ctx.zeros, ctx.differentiable, strict=True) if yes]
        pairs = [(x, t) for x, t in zip(tensors, tangents[1:], strict=True) if is_float(x)]
        found = iter(transposed(back, zeros)([torch.zeros_like(x) if t is None else t for x, t in pairs]))
        return tuple(next(found) if yes else None for yes in ctx.differentiable)


def _refuse_cut_graphs(outputs: Sequence[Tensor]) -> None:
    """Raise where a graph goes through DTensor's ``to_local``, ``full_tensor`` or ``from_local``.

    Their backward is not differentiable as often as a derivative of a derivative through training needs, and says
    nothing (torch 2.13).
    """
    for node in nodes_below(*(x.grad_fn for x in outputs)):
        if type(node).__name__ in ("_ToTorchTensorBackward", "_FromTorchTensorBackward"):
            raise RuntimeError(
                "a derivative of the derivative was asked for (create_graph=True), and train_loss, or the optimizer, "
                "makes plain tensors of DTensors, or the other way, by full_tensor, to_local or from_local, which "
                "torch does not differentiate as often"
            )


def _as(cotangent: Tensor | None, x: Tensor) -> Tensor | None:
    return cotangent if cotangent is None else like(cotangent.to(x), x)
