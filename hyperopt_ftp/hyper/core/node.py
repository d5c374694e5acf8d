"""Training as a node of the autograd graph: for strategies that make steps again, or whose derivative is another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...dtensors import in_layout_of, is_dtensor, layout, to_layout
from .graph import nodes_below
from .inputs import TrainInputs, TrainOutputs
from .leaves import floats, is_float, or_zeros
from .problem import InnerProblem, differentiable_steps
from .replay import Replay, RngState, refuse_other_losses
from .second_order import twice_differentiable
from .torch_private import differentiated, keeps_graph, refuse_forward_twice, tracked, under_transform, unwrap_dead
from .vjp import pull, transposed


class Run(NamedTuple):
    """A training that a node has run."""

    inputs: TrainInputs
    end: TrainOutputs | None  # where it ended, if the method wants it: under a transform it is differentiated again
    note: Any  # what the method has kept beside


class Method(NamedTuple):
    """How a node trains, and goes back.

    Attributes:
        name: of the strategy, for errors.
        pullback: ``pullback(problem, run, cotangents)`` gives derivatives of ``<cotangents, (params, state)>`` in the
            inputs; ``None`` for a part, or a tensor, is zero. Linear in the cotangents. ``cotangents.params`` and
            ``cotangents.state`` have the structure of the trained ones, with ``None`` in place of integers.
        train: ``train(problem, inputs)`` gives where training ends, and a note for ``pullback``. Under a transform the
            note holds nothing that depends on the inputs.
        exact: whether that is the derivative of the steps. ``create_graph=True`` differentiates these then, and under a
            ``torch.func`` transform there is no node.
        wants_end: whether ``pullback`` is evaluated at the end of training.
        needs: of the problem, see :class:`~hyperopt_ftp.hyper.guards.verdict.Needs`.
        values: ``values(problem, inputs)`` where nothing is differentiated.
    """

    name: str
    pullback: Callable[[InnerProblem, Run, TrainOutputs], TrainInputs]
    train: Callable[[InnerProblem, TrainInputs], tuple[TrainOutputs, Any]] = lambda p, inputs: (p.loop(inputs), None)
    exact: bool = False
    wants_end: bool = False
    needs: dict[str, bool] = {}  # noqa: RUF012  # never written
    values: Callable[[InnerProblem, TrainInputs], TrainOutputs] = InnerProblem.loop


def through_node(
    method: Method, problem: InnerProblem, inputs: TrainInputs, began: RngState | None = None
) -> TrainOutputs:
    """Training by a method, differentiable in what requires grad, or is under a transform, of the inputs.

    ``began``: the random state where training began; ``None``: the present one.
    """
    transform = under_transform()
    if transform and method.exact:
        return differentiable_steps(problem, inputs)
    refuse_forward_twice(method.name)
    inputs = problem.begun(inputs)
    leaves, rebuild = tree.flatten(inputs)
    flags = [is_float(x) and tracked(x) and differentiated(x) for x in leaves]
    derived, problem = transform or any(flags), problem.asking(rebuild(flags))
    guarded = partial(problem.guarded, inputs, derived=derived, closed=True, **method.needs)
    looked_at = guarded()
    if not derived:
        with torch.no_grad():
            return method.values(looked_at, inputs)
    places = [i for i, x in enumerate(leaves) if tracked(x)]
    first = guarded(inside_function=True) if transform else looked_at
    job = TrainJob(method, looked_at, first, leaves, rebuild, places, transform, Replay(began))
    return job.trained(TrainNode.apply(job, *(leaves[i] for i in places)))


@dataclass
class TrainJob:
    """What a node of the graph needs beside its input tensors."""

    method: Method
    problem: InnerProblem
    first: InnerProblem  # the same where training runs inside the node's function, without the transforms around it
    leaves: list[Any]  # of the inputs
    rebuild: Callable[[Sequence[Any]], TrainInputs]
    places: list[int]  # of the leaves that are inputs of the node
    transform: bool  # whether one of torch.func was active
    replay: Replay  # of when training began
    note: Any = None
    losses: Any = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)  # of all that the run went by
    end: Any = None  # (params, state), where a tensor, which is an output of the node, is its dtype

    def inputs(self, tensors: Sequence[Tensor]) -> TrainInputs:
        leaves = list(self.leaves)
        for i, x in zip(self.places, tensors, strict=True):
            leaves[i] = x
        return self.rebuild(leaves)

    def outputs(self, trained: TrainOutputs) -> list[Tensor]:
        return tree.tensors((trained.params, trained.state))

    def trained(self, outputs: Sequence[Tensor]) -> TrainOutputs:
        values = iter(outputs)
        params, state = tree.map_tree(lambda x: next(values) if isinstance(x, torch.dtype) else x, self.end)
        return TrainOutputs(params, state, outputs[-1])

    def pullback(
        self, tensors: Sequence[Tensor], outputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Cotangents of the node's inputs from those of its floating-point outputs."""

        def given(x: Any) -> Tensor | None:
            return next(values) if isinstance(x, torch.dtype) and x.is_floating_point else None

        values = iter(cotangents)
        params, state = tree.map_tree(given, self.end)
        self._check_versions()
        run = Run(self.inputs(tensors), self.trained(outputs) if self.method.wants_end else None, self.note)
        found = self.method.pullback(self.problem, run, TrainOutputs(params, state, None))
        leaves = cotangent_leaves(self.method.name, run.inputs, found)
        pairs = [(leaves[i], x) for i, x in zip(self.places, tensors, strict=True)]
        return [None if v is None else in_layout_of(v.to(x), x) for v, x in pairs]

    def pullback_with_graph(self, tensors: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """For ``create_graph=True``: the steps are repeated, and differentiated as they are."""
        if not self.method.exact:
            raise RuntimeError(
                f"a derivative of the derivative by {self.method.name} was asked for (create_graph=True), which has no "
                "graph here; take both by torch.func, such as torch.func.grad of a function that calls train"
            )
        self._check_versions()
        aliases = [x.view_as(x) for x in tensors]  # one input may depend on another outside
        inputs = self.inputs(aliases)
        problem = self.problem.guarded(inputs, closed=True, differentiates_whole_gradient=True)
        trained = self.replay.again(lambda: problem.loop(inputs))
        refuse_other_losses(self.losses, trained.losses)
        outputs = [x for x in self.outputs(trained) if is_float(x)]
        if any(map(is_dtensor, outputs)):
            _refuse_cut_graphs(outputs)
        return pull(outputs, cotangents, aliases, create_graph=True)

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
            trained, job.note = job.method.train(job.first, inputs)
        # The node may not hold its own outputs: it would never be freed.
        outputs = job.outputs(trained)
        for x in outputs:
            if x.is_complex():
                raise ValueError(
                    f"the optimizer's state has a complex tensor of shape {tuple(x.shape)}: derivatives go through "
                    "real ones; keep torch.view_as_real of it"
                )
        job.end = tree.map_tree(lambda x: x.dtype if isinstance(x, Tensor) else x, (trained.params, trained.state))
        job.losses = trained.losses
        if not job.transform:
            given = [x for x in job.leaves if isinstance(x, Tensor)]
            job.versions = [(x, x._version) for x in (*given, *map(_counter, outputs))]
        return (*(x.detach() for x in outputs), trained.losses.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, *tensors = inputs
        ctx.job = job
        ctx.set_materialize_grads(False)  # zeros for the moments would be as large as they are
        # Where a derivative is None, which is there for floats alone, and not for the losses.
        ctx.zeros = [x.new_zeros(()).expand(x.shape) if is_float(x) else None for x in output[:-1]] + [None]
        ctx.mark_non_differentiable(*(x for x, zero in zip(output, ctx.zeros, strict=True) if zero is None))
        ctx.layouts = [layout(x) for x in output]
        saved = (*tensors, *output) if job.method.wants_end else tensors
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        with twice_differentiable():
            job: TrainJob = ctx.job
            rows = [row for row in zip(cotangents, ctx.zeros, ctx.layouts, strict=True) if row[1] is not None]
            given = [to_layout(unwrap_dead(zero if v is None else v), at) for v, zero, at in rows]
            tensors, outputs = _saved(ctx)
            if job.transform:
                found = job.replay.again(lambda: job.pullback(tensors, outputs, given))
            elif torch.is_grad_enabled():
                found = job.pullback_with_graph(tensors, given)
            else:
                with job.replay.autocast(on=False):
                    found = job.pullback([x.detach() for x in tensors], [x.detach() for x in outputs], given)
                if not keeps_graph():
                    job.note, job.versions = None, []
            return (None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The transpose of the pullback, which is linear in its cotangents."""
        with twice_differentiable():
            job: TrainJob = ctx.job
            tensors, outputs = _saved(ctx)

            def back(cotangents: list[Tensor]) -> list[Tensor]:
                found = job.replay.again(lambda: job.pullback(tensors, outputs, cotangents))
                return or_zeros([v for v, x in zip(found, tensors, strict=True) if is_float(x)], floats(tensors))

            zeros = [x.contiguous() for x in ctx.zeros if x is not None]
            along = [t for x, t in zip(tensors, tangents[1:], strict=True) if is_float(x)]
            found = iter(transposed(back, zeros)(or_zeros(along, floats(tensors))))
            return tuple(None if zero is None else next(found) for zero in ctx.zeros)


def _counter(x: Tensor) -> Tensor:
    """A tensor of one number with the shape and the version counter of another one, whose memory it does not hold."""
    if type(x) is not Tensor or x.layout is not torch.strided:
        return x
    counter = x.detach()
    counter.data = x.new_empty(()).expand(x.shape)
    return counter


def _saved(ctx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The node's inputs, and its outputs if the method wants the end."""
    saved, count = [unwrap_dead(x) for x in ctx.saved_tensors], len(ctx.job.places)
    return saved[:count], saved[count:]


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


def cotangent_leaves(name: str, inputs: TrainInputs, found: Any) -> list[Tensor | None]:
    """The leaves that ``pullback`` returned, in the order of the inputs' leaves, each of its shape or ``None``."""
    if not isinstance(found, TrainInputs):
        got = type(found).__name__
        raise TypeError(f"{name}: pullback must return TrainInputs(hparams, params, state, batches), got a {got}")
    leaves: list[Tensor | None] = []
    for part, values, given in zip(TrainInputs._fields, inputs, found, strict=True):
        if part == "batches" and not isinstance(values, (list, tuple)):
            continue  # read one by one, and constant
        if given is None:
            leaves += [None] * len(tree.leaves(values))
            continue
        row = tree.fitted(given, tree.Structure(values))
        if row is None:
            raise ValueError(f"{name}: pullback must return {part} in the structure of inputs.{part}, or None")
        for value, cotangent in zip(tree.leaves(values), row, strict=True):
            if cotangent is not None and (not isinstance(cotangent, Tensor) or cotangent.shape != value.shape):
                got = tuple(cotangent.shape) if isinstance(cotangent, Tensor) else type(cotangent).__name__
                raise ValueError(
                    f"{name}: pullback returned {got} for a tensor of {part} with shape {tuple(value.shape)}; a "
                    "cotangent has the shape of its tensor"
                )
        leaves += row
    return leaves
