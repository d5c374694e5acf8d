"""What torch.compile traces: steps of training, the way back through them, and the steps with tangents.

Functions are the training loss and the update. Rows are the numbers of the steps and their seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...types import Params, State
from ..core.leaves import combine, floats, select_floats
from ..core.problem import loss_at, without_loss
from .scan import loop, row_of

Point: TypeAlias = tuple[Params, State]  # where a step begins


def training(functions: Any, point: Point, batches: Any, hparams: Any, rows: Any) -> Any:
    """Where the loop ends, the losses, and where each step began."""

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        params, state = _with_tensors(point, carry)
        grads, loss = _gradient(functions, params, row_of(batches, k), hparams)
        return tree.tensors(functions[1](grads, state, params, without_loss(hparams))), [loss, *carry]

    end, (losses, *points) = loop(body, tree.tensors(point), rows)
    return _with_tensors(point, end), losses, _with_tensors(point, points)


def backward(
    functions: Any, points: Point, batches: Any, hparams: Any, needs_grad: Any, cotangents: list[Tensor], rows: Any
) -> Any:
    """Cotangents where the loop began, of the hparams, the losses, and cotangents of the batches."""
    count = len(cotangents)

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        step, at = _step_of_floats(functions, hparams, needs_grad, *row_of((points, batches), k))
        _, back, (loss, _) = torch.func.vjp(step, *at, has_aux=True)  # pyright: ignore[reportAssignmentType]
        bars, bar_h, bar_b = back(carry[:count])
        return [*bars, *map(torch.add, carry[count:], bar_h)], [loss, *bar_b]

    zeros = [torch.zeros_like(x) for x in select_floats(hparams, needs_grad[0])]
    end, (losses, *of_batches) = loop(body, [*cotangents, *zeros], rows, reverse=True)
    return end[:count], end[count:], losses, of_batches


def tangent(functions: Any, point: Point, batches: Any, hparams: Any, needs_grad: Any, tangents: Any, rows: Any) -> Any:
    """Where the loop ends, the losses, and tangents of the floats there."""
    (d_point, d_hparams, d_batches), count = tangents, len(tree.tensors(point))

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        params, state = at = _with_tensors(point, carry[:count])
        step, where = _step_of_floats(functions, hparams, needs_grad, at, row_of(batches, k))

        def one(*along: list[Tensor]) -> Any:
            _, moved, seen = torch.func.jvp(step, where, along, has_aux=True)  # pyright: ignore[reportAssignmentType]
            return moved, seen

        given = carry[count:], d_hparams, row_of(d_batches, k)
        if len(d_point[0]) == 1:  # without vmap, which not every operation knows
            moved, (loss, grads) = one(*[[x.squeeze(0) for x in row] for row in given])
            moved = [x.unsqueeze(0) for x in moved]
        else:
            alone: Any = (0, None)  # torch's types do not know None inside
            moved, (loss, grads) = torch.func.vmap(one, out_dims=alone, randomness="same")(*given)
        return [*tree.tensors(functions[1](grads, state, params, without_loss(hparams))), *moved], [loss]

    end, (losses,) = loop(body, [*tree.tensors(point), *d_point], rows)
    return _with_tensors(point, end[:count]), losses, end[count:]


def _step_of_floats(
    functions: Any, hparams: Any, needs_grad: Any, point: Point, batch: Any
) -> tuple[Any, tuple[list[Tensor], ...]]:
    """A step as a function of the floats of its point, and of what needs a gradient of hparams and batch; these floats.

    It gives the floats of the next point, and the loss and the gradient. 16-bit floats of points go in and out in 32.
    """

    def step(z: list[Tensor], h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], Any]:
        (params, state), knobs = combine(point, z), combine(hparams, h, needs_grad[0])
        stored = tree.map_tree(lambda x, y: x.to(y.dtype), params, point[0])
        grads, loss = _gradient(functions, stored, combine(batch, b, needs_grad[1]), knobs)
        new = functions[1](tree.map_tree(tree.working, grads), state, params, without_loss(knobs))
        return floats(new), (loss, grads)

    asked = select_floats(hparams, needs_grad[0]), select_floats(batch, needs_grad[1])
    return step, ([tree.working(x) for x in floats(point)], *asked)


def _gradient(functions: Any, params: Params, batch: Any, hparams: Any) -> tuple[Params, Tensor]:
    return torch.func.grad_and_value(loss_at, argnums=1)(functions[0], params, batch, hparams)


def _with_tensors(values: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree with other tensors in place of its own."""
    rest = iter(tensors)
    return tree.map_tree(lambda x: next(rest) if isinstance(x, Tensor) else x, values)
