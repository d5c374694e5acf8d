"""One training step and its derivatives as compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..types import Compile, Optimizer, Params, State
from .arguments import loss_at, without_loss
from .checkpoints import Point
from .data_parallel import DataParallel
from .leaves import Row, chosen, floats, fresh, refill
from .programs import Look, codes_of, program
from .rng import Recorder, refuse_other_losses
from .second_order import compiled_steps
from .steps import Steps, check_constant
from .strategy import Start


class CompiledSteps:
    """The step of an optimizer and a loss, and its derivatives, each compiled as a whole (``fullgraph=True``).

    A program is kept for the process, by the code that it is made of, and compiled anew where anything else that it
    depends on has changed: shapes, dtypes, what the loss closes over. Random numbers are drawn from torch's default
    generators, but may be others than those of the step as it is written.
    """

    def __init__(self, optimizer: Optimizer, train_loss: Callable[..., Tensor], compile: Compile) -> None:
        self._functions = (train_loss, optimizer.update)
        code = (*codes_of(train_loss), *codes_of(optimizer.update, constants=True))
        self._step = program(_step, "training step", compile, *code)
        self._back, self._along = (program(f, "derivative of a training step", compile, *code) for f in (_back, _along))

    def step(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], look: Look
    ) -> tuple[Params, State, Tensor]:
        """Params and state after a step, and its training loss."""
        params, state, hparams = _apart(params, state, hparams)
        return self._step.run(look, *self._functions, params, state, batch, hparams)

    def back(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], wanted: tuple[Any, Any],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[list[Row], Tensor]:  # fmt: skip
        """Cotangents of params, state, wanted hparams and wanted batch before a step, and its training loss.

        Args:
            params, state, batch, hparams: before the step.
            wanted: masks of hparams and batch.
            cotangents: of the floats of params and state after the step.
        """
        after = [tree.working(x) for x in (*floats(params), *floats(state))]
        given = [torch.zeros_like(x) if v is None else _laid_out(v, x) for x, v in zip(after, cotangents, strict=True)]
        params, state, hparams, given = _apart(params, state, hparams, given)
        return self._back.run(None, *self._functions, params, state, batch, hparams, wanted, given)

    def along(
        self, params: Params, state: State, batch: Any, hparams: dict[str, Any], wanted: tuple[Any, Any],
        tangents: Sequence[Sequence[Tensor]], look: Look,
    ) -> tuple[Params, State, Tensor, list[Tensor]]:  # fmt: skip
        """Params and state after a step, its training loss, and tangents of the floats of params and state.

        Args:
            params, state, batch, hparams, wanted: as of :meth:`back`.
            tangents: of the floats of params and state, of the wanted hparams and of the wanted batch; the first
                dimension counts them.
        """
        rows = [[t.contiguous() for t in row] for row in tangents]
        params, state, hparams, tangents = _apart(params, state, hparams, rows)
        return self._along.run(look, *self._functions, params, state, batch, hparams, wanted, tangents)


class CompiledWalk:
    """K steps forward, and back, as :class:`~hyperopt_ftp.hyper.eager.EagerWalk`, by compiled steps."""

    def setting(self) -> AbstractContextManager[None]:
        return compiled_steps()

    def __init__(self, steps: Steps, start: Start, compile: Compile) -> None:
        check_compilable(start.params, steps.train_loss)
        self._steps, self._start = steps, start
        self._compiled = CompiledSteps(steps.optimizer, steps.train_loss, compile)
        self._hparams = fresh(start.hparams, False)[1]
        self._losses: dict[int, Tensor] = {}
        self._pairs: list[tuple[int, Tensor, Tensor]] = []  # step, its loss, and that of the step made again
        self._recorder = Recorder()

    def again(self) -> CompiledWalk:
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

    def back(self, k: int, point: Point, back_p: Row, back_s: Row) -> tuple[Row, Row, Row, Row]:
        batch, wanted = self._batch(k)
        masks = (self._steps.wanted.hparams, wanted)
        found, loss = self._recorder.again(
            point.rng,
            lambda: self._compiled.back(point.params, point.state, batch, self._hparams, masks, [*back_p, *back_s]),
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
        batch, wanted = self._batch(k)
        look = partial(self._steps.look, params, state, batch, self._hparams, wanted)
        return self._compiled.step(params, state, batch, self._hparams, look)

    def _batch(self, k: int) -> tuple[Any, Any]:
        """Those of step k, and what is wanted of it."""
        batch, wanted = self._start.batches[k], self._steps.wanted_batch(k)
        check_constant(batch, wanted)
        return fresh(batch, False)[1], wanted


def check_compilable(params: Params, train_loss: Callable[..., Tensor]) -> None:
    if isinstance(train_loss, DataParallel):
        raise ValueError(
            "compile=True cannot take a data-parallel loss: a program has no collectives that can be differentiated "
            "twice; leave it out"
        )
    if any(x.dtype == torch.float16 for x in tree.leaves(params)):
        raise ValueError("compile=True does not scale adjoints, and those of float16 params would vanish; leave it out")
    kinds = {x.device.type for x in tree.leaves(params)}
    if any(torch.is_autocast_enabled(kind) for kind in kinds):
        raise RuntimeError("compile=True does not run under autocast; cast inside the training loss, or leave it out")


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
    wanted: tuple[Any, Any], cotangents: list[Tensor],
) -> Any:  # fmt: skip
    def after(p: list[Tensor], s: list[Tensor], h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        at, knobs = refill(params, p), refill(hparams, h, wanted[0])
        stored = tree.map_tree(lambda x, y: x.to(y.dtype), at, params)
        grads, loss = torch.func.grad_and_value(loss_at, argnums=1)(
            train_loss, stored, refill(batch, b, wanted[1]), knobs
        )
        return floats(update(tree.map_tree(tree.working, grads), refill(state, s), at, without_loss(knobs))), loss

    wide = [[tree.working(x) for x in floats(part)] for part in (params, state)]
    point = (*wide, chosen(hparams, wanted[0]), chosen(batch, wanted[1]))
    _, back, loss = torch.func.vjp(after, *point, has_aux=True)  # pyright: ignore[reportAssignmentType]
    return list(back(cotangents)), loss


def _along(
    train_loss: Any, update: Any, params: Params, state: State, batch: Any, hparams: dict[str, Any],
    wanted: tuple[Any, Any], tangents: list[list[Tensor]],
) -> Any:  # fmt: skip
    knobs, inputs = chosen(hparams, wanted[0]), chosen(batch, wanted[1])

    def loss_of(p: list[Tensor], h: list[Tensor], b: list[Tensor]) -> Tensor:
        return loss_at(train_loss, refill(params, p), refill(batch, b, wanted[1]), refill(hparams, h, wanted[0]))

    def slopes(p: list[Tensor]) -> Any:
        found, loss = torch.func.grad_and_value(loss_of, argnums=(0, 1, 2))(p, knobs, inputs)
        return found, (found[0], loss)

    def after(g: list[Tensor], p: list[Tensor], s: list[Tensor], h: list[Tensor]) -> list[Tensor]:
        own = without_loss(refill(hparams, h, wanted[0]))
        return floats(update(refill(params, g), refill(state, s), refill(params, p), own))

    stored = floats(params)
    _, to_params, (grads, loss) = torch.func.vjp(slopes, stored, has_aux=True)  # pyright: ignore[reportAssignmentType]
    wide = [[tree.working(x) for x in part] for part in (grads, stored, floats(state))]
    ends, transposed = torch.func.vjp(after, *wide, knobs)  # pyright: ignore[reportAssignmentType]
    forward = torch.func.vjp(transposed, [torch.zeros_like(x) for x in ends])[1]

    def one(dp: list[Tensor], ds: list[Tensor], dh: list[Tensor], db: list[Tensor]) -> list[Tensor]:
        given = [[v.to(x.dtype) for v, x in zip(row, like, strict=True)] for row, like in ((dp, stored), (dh, knobs))]
        dg = to_params((given[0], given[1], db))[0]
        dg = [tree.working(x) for x in dg]
        return forward((dg, dp, ds, dh))[0]

    if len(tangents[0][0]) == 1:  # without vmap, which not every operation knows
        moved = [x.unsqueeze(0) for x in one(*[[t[0] for t in row] for row in tangents])]
    else:
        moved = torch.func.vmap(one)(*tangents)
    new = update(refill(params, grads), state, params, without_loss(hparams))
    return *new, loss, moved
