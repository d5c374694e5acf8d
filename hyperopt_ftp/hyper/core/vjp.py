"""Vector-Jacobian and Jacobian-vector products: through a graph, and of functions of lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...dtensors import in_layout_of, is_dtensor
from .leaves import OptionalTensors, detached_leaves, is_narrow, or_zeros
from .torch_private import run_backward, under_transform

Vector: TypeAlias = list[Tensor]


def pull(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor], *,
    retain_graph: bool = False, create_graph: bool = False, rows: bool = False,
) -> OptionalTensors:  # fmt: skip
    """Vector-Jacobian product; ``None`` is zero. Through a graph in 16 bits cotangents go scaled by a power of two.

    Args:
        outputs, cotangents, inputs, retain_graph, create_graph: as of ``torch.autograd.grad``.
        rows: cotangents have a first dimension, of several products at once.
    """
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if v is not None and y.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ys, vs = [y for y, _ in pairs], [v for _, v in pairs]
    scale, graph = _power_of_two(vs) if is_narrow(ys) else None, create_graph or torch.is_grad_enabled()
    if scale is not None:
        with torch.set_grad_enabled(graph):
            vs = [(tree.working(v) * scale.to(v.device)).to(y.dtype) for y, v in zip(ys, vs, strict=True)]
    back = partial(run_backward, ys, inputs, retain_graph=retain_graph or create_graph, create_graph=create_graph)
    try:
        found = _by_rows(back, vs) if rows else back(vs)
    except RuntimeError as error:
        text = _explained(error, rows)
        if text is None:
            raise
        raise RuntimeError(text) from error
    found = list(found)
    if scale is not None:
        with torch.set_grad_enabled(graph):
            for i, x in enumerate(found):  # the narrow one goes when the wide one is there
                found[i] = None if x is None else tree.working(x) / scale.to(x.device)  # which float16 may not hold
    return found


def pull_columns(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], columns: Sequence[Sequence[Tensor]],
    retain_graph: bool = False,
) -> list[OptionalTensors]:  # fmt: skip
    found = iter(pull(outputs, cotangents, [x for column in columns for x in column], retain_graph=retain_graph))
    return [[next(found) for _ in column] for column in columns]


def pull_rows(
    outputs: Sequence[Tensor], cotangents: OptionalTensors, inputs: Sequence[Tensor], rows: int
) -> OptionalTensors:
    """Several products at once; by vmap, except for DTensors."""
    if rows > 1 and not any(map(is_dtensor, inputs)):
        return pull(outputs, cotangents, inputs, rows=True)
    found = [
        pull(outputs, [None if v is None else v[i] for v in cotangents], inputs, retain_graph=i < rows - 1)
        for i in range(rows)
    ]
    columns = zip(inputs, *found, strict=True)
    return [None if column[0] is None else torch.stack([in_layout_of(x, w) for x in column]) for w, *column in columns]


def _by_rows(back: Callable[..., Sequence[Tensor | None]], vs: Sequence[Tensor]) -> OptionalTensors:
    """``back`` of each row of ``vs``, by vmap, which supports more operations than ``is_grads_batched``."""
    used: list[bool] = []

    def one(vs: Sequence[Tensor]) -> list[Tensor]:
        found = back(vs)
        used[:] = [x is not None for x in found]
        return [x for x in found if x is not None]

    found = iter(torch.func.vmap(one, randomness="same")(vs))
    return [next(found) if is_used else None for is_used in used]


def _explained(error: RuntimeError, rows: bool) -> str | None:
    once = any(text in str(error) for text in ("is not implemented", "double backward", "differentiate twice"))
    by_vmap = not once or any(text in str(error) for text in ("vmap", "Batching rule"))
    if rows and by_vmap and not isinstance(error, torch.OutOfMemoryError):  # which callers catch by its class
        return f"vmap cannot take this loss: {error}; take hft.Forward(chunk=1)"
    if not once:
        return None
    return (
        f"train_loss, or the optimizer, has no second derivative ({error}); use operations that have one, or "
        "strategy=hft.ZeroOrder(...), which needs none"
    )


def _power_of_two(vs: Sequence[Tensor]) -> Tensor:
    """A factor that brings the largest entry between 8 and 16, far from both limits of float16."""
    tops = [tree.working(v).abs().amax().to(vs[0].device).double() for v in vs if v.numel()]
    top = torch.stack(tops or [torch.ones((), dtype=torch.float64)]).amax()
    usable = top.isfinite() & (top > 0)
    exponent = torch.frexp(torch.where(usable, top, 1.0)).exponent
    return torch.ldexp(torch.ones_like(top), 4 - exponent)


def push_rows(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], tangents: OptionalTensors, rows: int
) -> OptionalTensors:
    """Tangents of outputs along those of inputs, which have rows in a first dimension, through a graph.

    A Jacobian-vector product as the transpose of a transpose: every operation with a second derivative will do.
    """
    zeros = [torch.zeros_like(y).requires_grad_() for y in outputs]
    back = pull(outputs, zeros, inputs, create_graph=True)
    pairs = [(w, t) for w, t in zip(back, tangents, strict=True) if w is not None]
    return pull_rows([w for w, _ in pairs], [t for _, t in pairs], zeros, rows)


def transposed(linear: Callable[[Vector], Any], zeros: Vector) -> Callable[[Any], Vector]:
    back = torch.func.vjp(linear, zeros)[1]
    return lambda cotangents: back(cotangents)[0]


def vjp(function: Callable[..., Vector], *columns: Vector) -> tuple[Vector, Callable[[Vector], list[Any]]]:
    """Values of a function of lists of tensors, and its vector-Jacobian product, which can be called many times.

    By ``torch.func`` where it may be differentiated again, else by ``torch.autograd``, which supports more kinds of
    losses.
    """
    if under_transform() or torch.is_grad_enabled():
        values, pulled = torch.func.vjp(function, *columns)[:2]
        return values, pulled
    rows = [detached_leaves(column)[0] for column in columns]
    with torch.enable_grad():
        outputs = function(*rows)

    def back(cotangents: Vector) -> list[Any]:
        found = pull_columns(outputs, cotangents, rows, retain_graph=True)
        return [or_zeros(column, row) for column, row in zip(found, rows, strict=True)]

    return [y.detach() for y in outputs], back


def jvp(function: Callable[..., Vector], *columns: Vector) -> Callable[..., Vector]:
    """The Jacobian-vector product of a function of lists of tensors, which can be called many times."""
    values, back = torch.func.vjp(function, *columns)[:2]
    forward = transposed(back, [torch.zeros_like(y) for y in values])
    return lambda *tangents: forward(tangents)


def dot(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    return torch.stack([(u * v).sum().to(x[0].device) for u, v in zip(x, y, strict=True)]).sum()
