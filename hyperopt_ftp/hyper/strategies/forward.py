"""Exact forward mode: the derivatives of params and state are computed along with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import check_compile, check_count, explained
from ...dtensors import is_dtensor, layout, replicated, whole
from ...types import Compile, Params, State
from ..compiled.steps import CompiledSteps, compilable, compiled_loop
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import (
    OptionalTensors,
    cotangents_of,
    detached,
    detached_leaves,
    floats,
    is_float,
    is_narrow,
    present,
    select_floats,
)
from ..core.node import Method, Run, through_node
from ..core.problem import Gradient, InnerProblem
from ..core.replay import Replay, refuse_other_losses
from ..core.strategy import Costs, Strategy, few_steps
from ..core.torch_private import under_transform
from ..core.vjp import pull, pull_rows, push_rows


@explained()
@dataclass(frozen=True)
class Forward(Strategy):
    """Forward mode through all steps. Memory does not depend on their number.

    With ``z = (params, state)`` and one tangent for each scalar x that a derivative is asked for::

        dg/dx   = d/dp ( <dL/dp, dp/dx> + <dL/dh, dh/dx> + <dL/db, db/dx> )       L: the training loss, b: the batch
        dz/dx  <- d update(g, z, h) . (dg/dx, dz/dx, dh/dx)

    For a few hyperparameters and many steps: a tangent costs about as much time as training, and the memory of one copy
    of params and state. Both lines are computed in reverse mode, so every operation with a second derivative works.

    Args:
        chunk: number of tangents that are computed at once; more repeat the training for each chunk. ``None``: all, by
            ``vmap``. 1: one after the other, without ``vmap``, for losses that ``vmap`` cannot take.
        compile: compile each step with its tangents, as in :class:`Unroll`. No effect under a ``torch.func`` transform.

    Raises:
        ValueError, RuntimeError: a chunk below 1; as :class:`Unroll`.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> _, grads, _ = hft.hypergradient(
    ...     hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr", strategy=hft.Forward()
    ... )
    >>> round(grads["lr"].item(), 6)
    -3.93216
    """

    chunk: int | None = None
    compile: Compile = False

    def __post_init__(self) -> None:
        check_compile(self.compile)
        check_count("chunk", self.chunk, "tangents", none=True)

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        compile = self.compile and not under_transform() and compilable(self.compile, problem, inputs.params)
        how, programs = replace(self, compile=compile), bool(compile)
        needs = {"differentiates_whole_gradient": True, "compiled": programs, "tangents": programs}
        method = Method("Forward", how._back, how._train, exact=True, needs=needs, values=how._values)
        return through_node(method, problem, inputs)

    def _train(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        if problem.asks_batches:
            problem.refuse_shards("Forward")
        replay, count = Replay(), _count(problem, inputs)
        if self.chunk is None or count <= self.chunk:
            trained, tangents = self.carry(problem, inputs, 0, count)
        else:  # with leaves, so that a number that is taken of an hparam is seen
            hparams = detached_leaves(inputs.hparams, problem.needs_grad.hparams)[1]
            trained, tangents = self._values(problem, inputs._replace(hparams=hparams)), None
        return trained, (replay, trained.losses, tangents)

    def _back(self, problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        inputs, (replay, losses, tangents) = run.inputs, run.note
        given = [*present(cotangents.params), *present(cotangents.state)]
        if tangents is not None:  # all were carried at once
            slopes = _contract(given, tangents)
        else:
            count, size = _count(problem, inputs), self.chunk or 1
            parts = []
            for a in range(0, count, size):
                b = min(a + size, count)
                trained, tangents = replay.again(lambda a=a, b=b: self.carry(problem, inputs, a, b))
                refuse_other_losses(losses, trained.losses)
                parts.append(_contract(given, tangents))
                del trained, tangents  # before the next chunk makes its own
            slopes = torch.cat(parts)
        asked = select_floats(inputs, problem.needs_grad)
        rows = slopes.split([x.numel() for x in asked])
        new = [row.reshape(x.shape) for row, x in zip(rows, asked, strict=True)]
        return cotangents_of(inputs, new, problem.needs_grad)

    def _values(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        return compiled_loop(problem, inputs, self.compile) if self.compile else problem.loop(inputs)

    def costs(self, problem: InnerProblem, inputs: TrainInputs) -> Costs:
        count, tangents, (steps, few) = len(inputs.batches), _count(problem, inputs), few_steps(problem, inputs)
        size = min(self.chunk or tangents, tangents)
        chunks = -(-tangents // size)
        # The first gradient has no tangent where only the optimizer's hparams have.
        of_loss = problem.needs_grad._replace(hparams={"loss": problem.needs_grad.hparams.get("loss", False)})
        products = tangents * (count - (not any(tree.leaves(of_loss))))

        def trial() -> Any:
            with torch.no_grad():
                ends = [steps.loop(few)] if chunks > 1 else []
                return ends, self.carry(steps, few, 0, size), [torch.ones_like(x) for x in floats(few.params)]

        words = f"{size} tangents at once" if size > 1 else "one tangent at a time"
        return Costs(count * (chunks + (chunks > 1)), products, words, trial)

    def carry(self, problem: InnerProblem, inputs: TrainInputs, a: int, b: int) -> tuple[TrainOutputs, list[Tensor]]:
        """Train, with the tangents of the scalars a to b of what needs a gradient."""
        return _carry_compiled(problem, inputs, a, b, self.compile) if self.compile else _carry(problem, inputs, a, b)


def _carry(problem: InnerProblem, inputs: TrainInputs, a: int, b: int) -> tuple[TrainOutputs, list[Tensor]]:
    """Train, with the tangents of the scalars a to b; their first dimension counts them."""
    rows, units, asked = b - a, _Units(a, b), problem.needs_grad
    knobs, hparams = detached_leaves(inputs.hparams, asked.hparams)
    d_knobs = units.of(inputs.hparams, asked.hparams)
    d_params = units.of_all(inputs.params, asked.params)
    d_state = units.of_all(inputs.state, asked.state)
    params, state = detached((inputs.params, inputs.state))
    losses = []
    for k in range(len(inputs.batches)):
        of_batch = problem.batch_needs_grad(k)
        leaves, batch = detached_leaves(inputs.batches[k], of_batch)
        d_batch = units.of(batch, of_batch)
        moving = any(v is not None for v in (*d_params, *d_batch, *d_knobs))
        found = problem.gradient(params, batch, hparams, graph=moving)
        d_grads: OptionalTensors = [None] * len(found.grads)
        if moving:  # d/dp of <dL/dp, dp> + <dL/dh, dh> + <dL/db, db>
            others = [*knobs, *leaves]
            more = pull([found.loss], [torch.ones_like(found.loss)], others, create_graph=True)
            pairs = zip((*found.grads, *more), (*d_params, *d_knobs, *d_batch), strict=True)
            outputs, tangents = zip(*[(x, t) for x, t in pairs if x is not None], strict=True)
            d_grads = pull_rows(outputs, [*tangents], found.params, rows)
        losses.append(found.loss.detach())
        params, state, d_params, d_state = _update(
            problem, found, params, state, hparams, knobs, (d_grads, d_params, d_state, d_knobs), rows
        )
    ends = _filled(floats(params), d_params, rows) + _filled(floats(state), d_state, rows)
    return TrainOutputs(params, state, torch.stack(losses)), ends


def _update(
    problem: InnerProblem, found: Gradient, params: Params, state: State, hparams: dict[str, Any], knobs: list[Tensor],
    tangents: tuple[OptionalTensors, ...], rows: int,
) -> tuple[Params, State, OptionalTensors, OptionalTensors]:  # fmt: skip
    """The update and its derivative along the tangents of gradients, params, state and knobs."""
    g, at_grads = detached_leaves(found.rebuild(found.grads), wide=True)
    p, at = detached_leaves(params, wide=True)
    s, before = detached_leaves(state, wide=True)
    with torch.enable_grad():
        new_p, new_s = problem.update(at_grads, before, at, hparams)
    along = [x for row in tangents for x in row]
    moved = push_rows([*floats(new_p), *floats(new_s)], [*g, *p, *s, *knobs], along, rows)
    if is_narrow(params):  # the values are those of the 16-bit step
        with torch.no_grad():
            new_p, new_s = problem.update(found.rebuild(found.grads), state, params, hparams)
    new_p, new_s = detached((new_p, new_s))
    return new_p, new_s, moved[: len(p)], moved[len(p) :]


def _carry_compiled(
    problem: InnerProblem, inputs: TrainInputs, a: int, b: int, compile: Compile
) -> tuple[TrainOutputs, list[Tensor]]:
    rows, units, asked = b - a, _Units(a, b), problem.needs_grad
    d_hparams = _filled(select_floats(inputs.hparams, asked.hparams), units.of(inputs.hparams, asked.hparams), rows)
    d_params = _filled(floats(inputs.params), units.of_all(inputs.params, asked.params), rows)
    d_state = _filled(floats(inputs.state), units.of_all(inputs.state, asked.state), rows)

    def of_batch(k: int) -> list[Tensor]:
        batch, of_batch = inputs.batches[k], problem.batch_needs_grad(k)
        return _filled(select_floats(batch, of_batch), units.of(batch, of_batch), rows)

    return CompiledSteps(problem, inputs, compile).along([d_params, d_state, d_hparams], of_batch)


def _filled(values: list[Tensor], tangents: OptionalTensors, rows: int) -> list[Tensor]:
    pairs = zip(map(tree.working, values), tangents, strict=True)
    return [_zeros(x, rows) if t is None else t for x, t in pairs]


def _zeros(x: Tensor, rows: int) -> Tensor:
    return torch.stack([torch.zeros_like(x)] * rows) if is_dtensor(x) else x.new_zeros((rows, *x.shape))


class _Units:
    """Unit vectors of the scalars a to b of what needs a gradient, part by part in the order of the inputs."""

    def __init__(self, a: int, b: int) -> None:
        self._from, self._to, self._at = a, b, 0

    def of(self, values: Any, needs_grad: Any) -> OptionalTensors:
        return [self._of(x) for x in select_floats(values, needs_grad)]

    def of_all(self, values: Any, needs_grad: Any) -> OptionalTensors:
        """For all floating-point tensors: those that need no gradient have no tangent."""
        pairs = zip(tree.leaves(values), tree.leaves(needs_grad), strict=True)
        return [self._of(x) if asked else None for x, asked in pairs if is_float(x)]

    def _of(self, x: Tensor) -> Tensor | None:
        begin, self._at = self._at, self._at + x.numel()
        if max(begin, self._from) >= min(self._at, self._to):
            return None
        unit = torch.zeros((self._to - self._from, x.numel()), dtype=tree.working(x).dtype, device=x.device)
        unit.diagonal(self._from - begin).fill_(1)
        unit = unit.reshape(-1, *x.shape)
        at = layout(x)
        return unit if at is None else replicated(unit, at.mesh)


def _count(problem: InnerProblem, inputs: TrainInputs) -> int:
    return sum(x.numel() for x in select_floats(inputs, problem.needs_grad))


def _contract(cotangents: list[Tensor], tangents: list[Tensor]) -> Tensor:
    place, pairs = tangents[0].device, zip(cotangents, tangents, strict=True)
    return torch.stack([_along(v.to(t), t).to(place) for v, t in pairs]).sum(0)


def _along(cotangent: Tensor, tangents: Tensor) -> Tensor:
    if is_dtensor(tangents):  # shards of different sizes cannot be flattened
        return torch.stack([whole((cotangent * t).sum()) for t in tangents.unbind()])
    return tangents.reshape(len(tangents), cotangent.numel()) @ cotangent.reshape(-1)
