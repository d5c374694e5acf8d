"""Floating-point tensors of trees, replaced by new leaves, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...hparams import is_wrapped

_DTYPE = attrgetter("dtype")

#: Derivatives of, or along, some tensors, one for each; ``None`` is zero.
OptionalTensors: TypeAlias = list[Tensor | None]


def detached_leaves(values: Any, needs_grad: Any = True, wide: bool = False) -> tuple[list[Tensor], Any]:
    """New leaves for the floating-point tensors of a tree, and the tree with them in place; all else is detached.

    Args:
        values: a tree.
        needs_grad: a tree of its structure that says which tensors become leaves, or one answer for all.
        wide: leaves of 16-bit tensors are float32.
    """
    rows, rebuild = tree.flatten(values)
    new, leaves = [], []
    if needs_grad is False:
        return leaves, rebuild([x.detach() if isinstance(x, Tensor) else x for x in rows])
    for x, is_leaf in zip(rows, _mask(rows, needs_grad), strict=True):
        if isinstance(x, Tensor):
            x = x.detach()
            if is_leaf and x.is_floating_point():
                x = (tree.working(x) if wide else x).requires_grad_()
                leaves.append(x)
        new.append(x)
    return leaves, rebuild(new)


def detached(values: Any) -> Any:
    """A tree without graphs; the same one where nothing in it has one."""
    for x in tree.leaves(values):
        if isinstance(x, Tensor) and (x.requires_grad or is_wrapped(x)):
            return detached_leaves(values, False)[1]
    return values


def without_inference(values: Any) -> Any:
    """A tree with copies in place of tensors that were made under inference mode, which autograd does not take."""
    return tree.map_tree(lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, values)


def select_floats(values: Any, needs_grad: Any) -> list[Tensor]:
    rows = tree.leaves(values)
    return [x for x, chosen in zip(rows, _mask(rows, needs_grad), strict=True) if chosen and is_float(x)]


def combine(values: Any, new: Sequence[Any], needs_grad: Any = True) -> Any:
    """``values`` with ``new`` in place of the leaves of :func:`detached_leaves`."""
    return _filled(values, new, needs_grad, keep=True)


def cotangents_of(values: Any, found: Sequence[Any], needs_grad: Any = True) -> Any:
    """``values`` with ``found`` in place of the leaves of :func:`detached_leaves`, and ``None`` elsewhere."""
    return _filled(values, found, needs_grad, keep=False)


def _filled(values: Any, new: Sequence[Any], needs_grad: Any, keep: bool) -> Any:
    rows, rebuild = tree.flatten(values)
    rest = iter(new)
    pairs = zip(rows, _mask(rows, needs_grad), strict=True)
    return rebuild([next(rest) if chosen and is_float(x) else x if keep else None for x, chosen in pairs])


def _mask(rows: Sequence[Any], needs_grad: Any) -> list[Any]:
    return [needs_grad] * len(rows) if isinstance(needs_grad, bool) else tree.leaves(needs_grad)


def requiring_grad(values: Any) -> list[Tensor]:
    return [x for x in tree.leaves(values) if isinstance(x, Tensor) and x.requires_grad]


def floats(values: Any) -> list[Tensor]:
    return [x for x in tree.leaves(values) if is_float(x)]


def present(cotangents: Any) -> list[Tensor]:
    """The cotangents of the floating-point tensors: there are none of others."""
    return [x for x in tree.leaves(cotangents) if x is not None]


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def all_finite(x: Tensor) -> bool:
    """By the sum first, which is one operation for four."""
    return math.isfinite((x if x.numel() == 1 else x.sum()).item()) or bool(x.isfinite().all())


def is_narrow(params: Any) -> bool:
    """Whether there are 16-bit params: their adjoints are float32, and are scaled before they go through the loss."""
    return not tree.NARROW.isdisjoint(map(_DTYPE, tree.leaves(params)))


def or_zeros(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if v is None else v for v, x in zip(found, like, strict=True)]


def added(row: OptionalTensors, more: OptionalTensors) -> OptionalTensors:
    return [b if a is None else a if b is None else a + b for a, b in zip(row, more, strict=True)]
