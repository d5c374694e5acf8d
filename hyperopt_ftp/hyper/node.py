"""Training as a node of the autograd graph, whose derivative is a strategy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..dtensors import is_dtensor, layout, like, placed
from .functorch import alive, keeps_graph
from .leaves import is_float
from .rng import Recorder, RngState, refuse_other_losses
from .steps import Steps
from .strangers import refuse_cut_graphs
from .strategy import Start, Trained, check_trained, cotangent_leaves


@dataclass
class Job:
    """What a node of the graph has to know beside the tensors that it is a function of."""

    strategy: Any
    steps: Steps
    leaves: list[Any]  # of the start
    rebuild: Callable[[Sequence[Any]], Start]
    places: list[int]  # of the leaves that are inputs of the node
    transform: bool  # whether one of torch.func was active
    recorder: Recorder
    rng: RngState  # when training began
    residual: Any = None  # of a run without a transform
    losses: Any = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)  # of all that the run went by
    end: Any = None  # (params, state) with the dtypes of its tensors, which are outputs of the node, in their place

    def start(self, inputs: Sequence[Tensor]) -> Start:
        leaves = list(self.leaves)
        for i, x in zip(self.places, inputs, strict=True):
            leaves[i] = x
        return self.rebuild(leaves)

    def run(self, steps: Steps, inputs: Sequence[Tensor]) -> tuple[Trained, Any]:
        return check_trained(self.strategy, self.strategy.run(steps, self.start(inputs)))

    def outputs(self, trained: Trained) -> list[Tensor]:
        return [x for x in tree.leaves((trained.params, trained.state)) if isinstance(x, Tensor)]

    def trained(self, outputs: Sequence[Tensor]) -> Trained:
        """The node's outputs as what was trained."""
        rows, rebuild = tree.flatten(self.end)
        values = iter(outputs)
        params, state = rebuild([next(values) if isinstance(x, torch.dtype) else x for x in rows])
        return Trained(params, state, outputs[-1])

    def pullback(self, inputs: Sequence[Tensor], residual: Any, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the floating-point outputs."""
        rows, rebuild = tree.flatten(self.end)
        values = iter(cotangents)
        floating = [isinstance(x, torch.dtype) and x.is_floating_point for x in rows]
        params, state = rebuild([next(values) if yes else None for yes in floating])
        start = self.start(inputs)
        self._check_versions()
        found = self.strategy.pullback(self.steps, residual, Trained(params, state, None))
        leaves = cotangent_leaves(self.strategy, start, found)
        return [_as(leaves[i], x) for i, x in zip(self.places, inputs, strict=True)]

    def _check_versions(self) -> None:
        for x, version in self.versions:
            if x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that train was given, or has returned, was modified by an "
                    "inplace operation before the backward pass, which needs it as it was; clone() it"
                )

    def again(self, inputs: Sequence[Tensor]) -> Any:
        """The residual of a run that is differentiable in the inputs."""
        trained, residual = self.recorder.again(self.rng, lambda: self.run(self.steps, inputs))
        refuse_other_losses(self.losses, trained.losses)
        return residual


class TrainNode(torch.autograd.Function):
    """The node of the graph: outputs are the tensors of (params, state), and the losses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(job: Job, *inputs: Tensor) -> tuple[Tensor, ...]:
        detached = [x.detach() for x in inputs]
        steps = replace(job.steps, apart=job.transform)
        trained, residual = job.run(steps, detached)
        # The node may not hold its own outputs: it would never be freed.
        complex_ones = [x for x in job.outputs(trained) if x.is_complex()]
        if complex_ones:
            raise ValueError(
                f"the optimizer's state has a complex tensor of shape {tuple(complex_ones[0].shape)}: derivatives go "
                "through real ones; keep torch.view_as_real of it"
            )
        job.end = tree.map_tree(lambda x: x.dtype if isinstance(x, Tensor) else x, (trained.params, trained.state))
        job.losses = trained.losses
        if not job.transform:
            job.residual = residual
            job.versions = [(x, x._version) for x in (*job.leaves, *job.outputs(trained)) if isinstance(x, Tensor)]
        return (*(x.detach() for x in job.outputs(trained)), trained.losses.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, *tensors = inputs
        ctx.job = job
        ctx.set_materialize_grads(False)  # zeros for the moments would be as large as they are
        ctx.differentiable = [is_float(x) for x in output[:-1]] + [False]
        ctx.mark_non_differentiable(*(x for x, yes in zip(output, ctx.differentiable, strict=True) if not yes))
        ctx.layouts = [layout(x) for x in output]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.shapes = [x.new_zeros(()).expand(x.shape) for x in output]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        job: Job = ctx.job
        rows = zip(cotangents, ctx.shapes, ctx.layouts, ctx.differentiable, strict=True)
        given = [placed(alive(shape if v is None else v), at) for v, shape, at, yes in rows if yes]
        inputs = [alive(x) for x in ctx.saved_tensors]
        if job.transform:
            residual = job.again(inputs)
            found = job.recorder.again(job.rng, lambda: job.pullback(inputs, residual, given))
        elif torch.is_grad_enabled():
            found = _pullback_with_graph(job, inputs, given)
        else:
            with job.recorder.without_autocast():
                found = job.pullback(inputs, job.residual, given)
            if not keeps_graph():
                job.residual, job.versions = None, []
        return (None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # the first is the job's
        """The transpose of the pullback, which is linear in its cotangents."""
        job: Job = ctx.job
        inputs = [alive(x) for x in ctx.saved_tensors]
        residual = job.again(inputs)

        def back(cotangents: list[Tensor]) -> list[Tensor]:
            found = job.recorder.again(job.rng, lambda: job.pullback(inputs, residual, cotangents))
            pairs = [(v, x) for v, x in zip(found, inputs, strict=True) if is_float(x)]
            return [torch.zeros_like(x) if v is None else v for v, x in pairs]

        zeros = [x.contiguous() for x, yes in zip(ctx.shapes, ctx.differentiable, strict=True) if yes]
        forward = torch.func.vjp(back, zeros)[1]
        pairs = [(x, t) for x, t in zip(inputs, tangents[1:], strict=True) if is_float(x)]
        values = iter(forward([torch.zeros_like(x) if t is None else t for x, t in pairs])[0])
        return tuple(next(values) if yes else None for yes in ctx.differentiable)


def _pullback_with_graph(job: Job, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """As ``create_graph=True`` asks for: the steps are made again, and differentiated as they are."""
    if not getattr(job.strategy, "exact", False):
        raise RuntimeError(
            f"a derivative of the derivative by {type(job.strategy).__name__} was asked for (create_graph=True), which "
            "has no graph here; take both by torch.func, such as torch.func.grad of a function that calls train"
        )
    job._check_versions()
    aliases = [x.view_as(x) for x in inputs]  # one input may depend on another outside
    trained = job.recorder.again(job.rng, lambda: job.steps.loop(job.start(aliases)))
    refuse_other_losses(job.losses, trained.losses)
    outputs = [x for x in job.outputs(trained) if is_float(x)]
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    ys, vs = zip(*pairs, strict=True)
    if any(map(is_dtensor, ys)):
        refuse_cut_graphs(ys)
    return torch.autograd.grad(ys, aliases, vs, create_graph=True, allow_unused=True)


def _as(cotangent: Tensor | None, x: Tensor) -> Tensor | None:
    return cotangent if cotangent is None else like(cotangent.to(x), x)
