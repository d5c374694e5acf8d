"""Trees and their floating-point tensors: new leaves in their place, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from .. import tree

#: Derivatives of, or along, some tensors, one for each; ``None`` is zero.
Row: TypeAlias = list[Tensor | None]


def fresh(values: Any, wanted: Any = True, wide: bool = False) -> tuple[list[Tensor], Any]:
    """New leaves for the floating-point tensors of a tree, and the tree with them in place; all else is detached.

    Args:
        values: a tree.
        wanted: a tree of its structure that says which tensors become leaves, or one answer for all.
        wide: leaves of 16-bit tensors are float32.
    """
    rows, rebuild = tree.flatten(values)
    new, leaves = [], []
    for x, is_wanted in zip(rows, _mask(rows, wanted), strict=True):
        if isinstance(x, Tensor):
            x = x.detach()
            if is_wanted and x.is_floating_point():
                x = (tree.working(x) if wide else x).requires_grad_()
                leaves.append(x)
        new.append(x)
    return leaves, rebuild(new)


def chosen(values: Any, wanted: Any) -> list[Tensor]:
    """The floating-point tensors that are wanted; ``wanted`` as of :func:`fresh`."""
    rows = tree.leaves(values)
    return [x for x, is_wanted in zip(rows, _mask(rows, wanted), strict=True) if is_wanted and is_float(x)]


def refill(values: Any, new: Sequence[Any], wanted: Any = True) -> Any:
    """``values`` with ``new`` in the places of :func:`fresh`'s leaves."""
    return _filled(values, new, wanted, keep=True)


def cotangents_of(values: Any, found: Sequence[Any], wanted: Any = True) -> Any:
    """A tree like ``values`` with ``found`` in the places of :func:`fresh`'s leaves, and ``None`` elsewhere."""
    return _filled(values, found, wanted, keep=False)


def _filled(values: Any, new: Sequence[Any], wanted: Any, keep: bool) -> Any:
    rows, rebuild = tree.flatten(values)
    rest = iter(new)
    pairs = zip(rows, _mask(rows, wanted), strict=True)
    return rebuild([next(rest) if wants and is_float(x) else x if keep else None for x, wants in pairs])


def _mask(rows: Sequence[Any], wanted: Any) -> list[Any]:
    """Whether each leaf is wanted."""
    return [wanted] * len(rows) if isinstance(wanted, bool) else tree.leaves(wanted)


def floats(values: Any) -> list[Tensor]:
    """The floating-point tensors of a tree."""
    return [x for x in tree.leaves(values) if is_float(x)]


def known(cotangents: Any) -> list[Tensor]:
    """The cotangents of the floating-point tensors: there are none of others."""
    return [x for x in tree.leaves(cotangents) if x is not None]


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
