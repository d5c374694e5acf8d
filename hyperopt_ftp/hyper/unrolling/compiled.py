"""One training step and its derivatives as compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ... import tree
from ...types import Compile, Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, combine, detached, detached_leaves, floats, select_floats
from ..core.problem import InnerProblem, loss_at, without_loss
from ..core.replay import Replay, refuse_other_losses
from ..core.transforms import has_saved_tensor_hooks, is_batched
from ..core.vjp import transposed
from .checkpoints import Checkpoint
from .programs import Look, codes_of, program


class StepPrograms:
    """The step of an optimizer and a loss, and its derivatives, each compiled as a whole (``fullgraph=True``).

    A program is kept for the process, by the code that it is made of, and compiled anew where anything else that it
    depends on has changed: shapes, dtypes, what the loss closes over. Random numbers are drawn from torch's default
    generators, but may be others than those of the step as it is written.
    """

    def __init__(self, problem: InnerProblem, compile: Compile) -> None:
        train_loss, update = self._functions = problem.bare.train_loss, problem.bare.update_fn
        code = (*codes_of(train_loss), *codes_of(update, constants=True))
        self._step = program(_step, "training step", compile, *code)
        self._back, self._along = (program(f, "derivative of a training step", compile, *code) for f in (_back, _along))

    def step(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], look: Look
    ) -> tuple[Params, State, Tensor]:
        """Params and state after a step, and its training loss."""
        _refuse_surroundings()
        params, state, hparams = _apart(params, state, hparams)
        return self._step.run(look, *self._functions, params, state, batch, hparams)

    def back(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], needs_grad: tuple[Any, Any],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[list[OptionalTensors], Tensor]:  # fmt: skip
        """Cotangents before a step, of params, state, and what needs a gradient of hparams and batch; and its loss.

        Args:
            params, state, batch, hparams: before the step.
            needs_grad: masks of hparams and batch.
            cotangents: of the floats of params and state after the step.
        """
        _refuse_surroundings(cotangents)
        after = [tree.working(x) for x in (*floats(params), *floats(state))]
        given = [torch.zeros_like(x) if v is None else _laid_out(v, x) for x, v in zip(after, cotangents, strict=True)]
        params, state, hparams, given = _apart(params, state, hparams, given)
        return self._back.run(None, *self._functions, params, state, batch, hparams, needs_grad, given)

    def along(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], needs_grad: tuple[Any, Any],
        tangents: Sequence[Sequence[Tensor]], look: Look,
    ) -> tuple[Params, State, Tensor, list[Tensor]]:  # fmt: skip
        """Params and state after a step, its training loss, and tangents of the floats of params and state.

        Args:
            params, state, batch, hparams, needs_grad: as of :meth:`back`.
            tangents: of the floats of params and state, of the hparams and of the batch that need a gradient; the first
                dimension counts them.
        """
        _refuse_surroundings()
        rows = [[t.contiguous() for t in row] for row in tangents]
        params, state, hparams, tangents = _apart(params, state, hparams, rows)
        return self._along.run(look, *self._functions, params, state, batch, hparams, needs_grad, tangents)


class CompiledSteps:
    """K steps forward, and back, as :class:`~hyperopt_ftp.hyper.unrolling.eager.EagerSteps`, by programs."""

    def __init__(self, problem: InnerProblem, inputs: TrainInputs, compile: Compile) -> None:
        self._problem, self._inputs = problem, inputs
        self._programs = StepPrograms(problem, compile)
        self._hparams = detached(inputs.hparams)
        self._losses: dict[int, Tensor] = {}
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its loss, and that of the step made again
        self._replay = Replay()

    def for_retained_backward(self) -> CompiledSteps:
        other = copy(self)
        other._pairs = []
        return other

    def forward(self, k: int, params: Params, state: State, keep: bool) -> tuple[Params, State, Tensor]:
        params, state, self._losses[k] = self._run(k, params, state)
        return params, state, self._losses[k]

    def step(self, k: int, params: Params, state: State) -> tuple[Params, State]:
        params, state, loss = self._run(k, params, state)
        self._pairs.append((k, self._losses[k], loss))
        return params, state

    def back(
        self, k: int, point: Checkpoint, back_p: OptionalTensors, back_s: OptionalTensors
    ) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, OptionalTensors]:
        batch, masks = detached(self._inputs.batches[k]), self._masks(k)
        found, loss = self._replay.run(
            point.rng,
            lambda: self._programs.back(point.params, point.state, batch, self._hparams, masks, [*back_p, *back_s]),
        )
        self._pairs.append((k, self._losses[k], loss))
        bar_p, bar_s, bar_h, bar_b = found
        return bar_p, bar_s, bar_h, bar_b

    def compare(self) -> None:
        if self._pairs:
            ks, first, again = zip(*self._pairs, strict=True)
            # Each program adds up in an order of its own.
            refuse_other_losses(torch.stack(first), torch.stack(again), power=0.5, steps=ks)

    def _run(self, k: int, params: Params, state: State) -> tuple[Params, State, Tensor]:
        batch, masks = detached(self._inputs.batches[k]), self._masks(k)
        look = partial(as_written, self._problem, params, state, batch, self._hparams, masks)
        return self._programs.step(params, state, batch, self._hparams, look)

    def _masks(self, k: int) -> tuple[Any, Any]:
        return self._problem.needs_grad.hparams, self._problem.batch_needs_grad(k)


def as_written(
    problem: InnerProblem,
    params: Params,
    state: State,
    batch: Any,
    hparams: dict[str, Any],
    needs_grad: tuple[Any, Any],
) -> None:
    """A step as it is written, of which nothing remains: errors that it raises are those of the compiled one."""
    replay = Replay()
    knobs = detached_leaves(hparams, needs_grad[0])[1]
    found = replay.run(replay.now(), lambda: problem.gradient(params, batch, knobs, needs_grad[1], graph=True))
    grads = found.rebuild([g.detach() for g in found.grads])
    with torch.no_grad():
        replay.run(replay.now(), lambda: problem.update(grads, state, params, knobs))


def _refuse_surroundings(cotangents: Sequence[Tensor | None] = ()) -> None:
    """Raise where torch.compile would fail, with words about something else."""
    where = None
    if _get_current_dispatch_mode_stack():
        where = "inside a dispatch mode, such as the loss of another train that is being looked at"
    elif has_saved_tensor_hooks():
        where = "under hooks on saved tensors, such as those of torch.utils.checkpoint"
    elif any(v is not None and is_batched(v) for v in cotangents):
        where = "for cotangents that torch has batched, as jacobian(vectorize=True) does"
    if where:
        raise RuntimeError(f"compile=True: a compiled step cannot run {where}; leave compile out there")


def _laid_out(v: Tensor, like: Tensor) -> Tensor:
    """With the dtype and the strides of ``like``: torch compiles anew for others."""
    return v if v.stride() == like.stride() and v.dtype == like.dtype else torch.empty_like(like).copy_(v)


def _apart(*parts: Any) -> Any:
    """The same trees, no tensor in two places: torch compiles anew where other ones of its inputs are one."""
    rows, rebuild = tree.flatten(parts)
    tensors = [x for x in rows if isinstance(x, Tensor)]
    if len({id(x) for x in tensors}) == len(tensors):
        return parts
    return rebuild([x.detach() if isinstance(x, Tensor) else x for x in rows])


# The functions that are compiled.


def _step(train_loss: Any, update: Any, params: Params, state: State, batch: Any, hparams: dict[str, Any]) -> Any:
    grads, loss = torch.func.grad_and_value(loss_at, argnums=1)(train_loss, params, batch, hparams)
    params, state = update(grads, state, params, without_loss(hparams))
    return params, state, loss


def _back(
    train_loss: Any, update: Any, params: Params, state: State, batch: Any, hparams: dict[str, Any],
    needs_grad: tuple[Any, Any], cotangents: list[Tensor],
) -> Any:  # fmt: skip
    def after(p: list[Tensor], s: list[Tensor], h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        at, knobs = combine(params, p), combine(hparams, h, needs_grad[0])
        stored = tree.map_tree(lambda x, y: x.to(y.dtype), at, params)
        grads, loss = torch.func.grad_and_value(loss_at, argnums=1)(
            train_loss, stored, combine(batch, b, needs_grad[1]), knobs
        )
        return floats(update(tree.map_tree(tree.working, grads), combine(state, s), at, without_loss(knobs))), loss

    wide = [[tree.working(x) for x in floats(part)] for part in (params, state)]
    point = (*wide, select_floats(hparams, needs_grad[0]), select_floats(batch, needs_grad[1]))
    _, back, loss = torch.func.vjp(after, *point, has_aux=True)  # pyright: ignore[reportAssignmentType]
    return list(back(cotangents)), loss


def _along(
    train_loss: Any, update: Any, params: Params, state: State, batch: Any, hparams: dict[str, Any],
    needs_grad: tuple[Any, Any], tangents: list[list[Tensor]],
) -> Any:  # fmt: skip
    knobs, inputs = select_floats(hparams, needs_grad[0]), select_floats(batch, needs_grad[1])

    def loss_of(p: list[Tensor], h: list[Tensor], b: list[Tensor]) -> Tensor:
        return loss_at(
            train_loss, combine(params, p), combine(batch, b, needs_grad[1]), combine(hparams, h, needs_grad[0])
        )

    def slopes(p: list[Tensor]) -> Any:
        found, loss = torch.func.grad_and_value(loss_of, argnums=(0, 1, 2))(p, knobs, inputs)
        return found, (found[0], loss)

    def after(g: list[Tensor], p: list[Tensor], s: list[Tensor], h: list[Tensor]) -> list[Tensor]:
        own = without_loss(combine(hparams, h, needs_grad[0]))
        return floats(update(combine(params, g), combine(state, s), combine(params, p), own))

    stored = floats(params)
    _, to_params, (grads, loss) = torch.func.vjp(slopes, stored, has_aux=True)  # pyright: ignore[reportAssignmentType]
    wide = [[tree.working(x) for x in part] for part in (grads, stored, floats(state))]
    ends, back = torch.func.vjp(after, *wide, knobs)  # pyright: ignore[reportAssignmentType]
    forward = transposed(back, [torch.zeros_like(x) for x in ends])

    def one(dp: list[Tensor], ds: list[Tensor], dh: list[Tensor], db: list[Tensor]) -> list[Tensor]:
        given = [[v.to(x.dtype) for v, x in zip(row, like, strict=True)] for row, like in ((dp, stored), (dh, knobs))]
        dg = to_params((given[0], given[1], db))[0]
        dg = [tree.working(x) for x in dg]
        return forward((dg, dp, ds, dh))

    if len(tangents[0][0]) == 1:  # without vmap, which not every operation knows
        moved = [x.unsqueeze(0) for x in one(*[[t[0] for t in row] for row in tangents])]
    else:
        moved = torch.func.vmap(one)(*tangents)
    new = update(combine(params, grads), state, params, without_loss(hparams))
    return *new, loss, moved
