"""Checks of what a checkpoint holds. Each comes before anything has changed."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ...calls import shown
from .names import unwrapped

#: Behind the maker's name in a checkpoint; another number with each change that an older release cannot read.
FORMAT = ", format 1"

#: Key of the state of a ``PureOptimizer``. That of other optimizers is by parameter; torch saves and loads any other
#: key as it is.
PURE = "pure"

PURE_STATE = "a state of a pure optimizer goes into a new one: PureOptimizer(params, optimizer, state=...)"


def check_checkpoint(saved: Any) -> None:
    if not _is_checkpoint(saved):
        got = type(saved).__name__
        if isinstance(saved, Mapping):
            inside = [key for key, value in saved.items() if _is_checkpoint(value)]
            got = f"a dict with the keys {list(saved)[:5]}" + (f"; pass checkpoint[{inside[0]!r}]" if inside else "")
        elif isinstance(saved, (str, os.PathLike)):
            got += f"; load it first: torch.load({str(saved)!r})"
        elif hasattr(saved, "_fields"):
            got += f"; {PURE_STATE}"
        raise ValueError(f"load_state_dict needs what an optimizer's state_dict() returned, got {got}")


def _is_checkpoint(saved: Any) -> bool:
    return isinstance(saved, Mapping) and {"state", "param_groups"} <= saved.keys()


def check_order(here: list[str], there: list[str]) -> None:
    """Raise if a parameter of any group is in another place: torch loads by position, whatever the names are."""
    mine, theirs = [unwrapped(name) for name in here], [unwrapped(str(name)) for name in there]
    # torch.distributed.checkpoint goes by name, and of groups that were joined it keeps the names of one.
    known = set(theirs) if len(mine) == len(theirs) else ()
    for i, (name, other) in enumerate(zip(mine, theirs, strict=False)):
        if name != other and name in known:
            raise ValueError(
                f"the checkpoint's parameters are in another order: number {i} is {other!r} there and {name!r} here; "
                "build the optimizer with the parameters in the checkpoint's order, or delete param_names from its "
                "groups if they were renamed"
            )


def check_state(
    p: Tensor,
    name: Any,
    state: dict[str, Any],
    shapes: Mapping[str, torch.Size],
    needed: Collection[str],
    kinds: Mapping[str, str],
) -> None:
    """Loaded state is whole and fits its parameter.

    Args:
        p: the parameter.
        name: its name or index.
        state: what was loaded for it.
        shapes: of a constrained parameter's state, of which there are all keys or none.
        needed: keys of the base's state of which there are all or none.
        kinds: of the entries that the optimizer reads, by name.
    """
    for keys, why in (
        (shapes, "it is damaged, or of an earlier version"),
        (needed, "it is damaged, or of another optimizer"),
    ):
        missing = [key for key in keys if key not in state]
        present = len(missing) < len(keys) or (keys is needed and bool(state.keys() & shapes.keys()))
        if present and missing:
            raise ValueError(f"the checkpoint's state of {name!r} lacks {', '.join(missing)}: {why}")
    for key, value in state.items():
        if kinds.get(key) == "count":
            number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
                raise ValueError(
                    f"the checkpoint's {key} of {name!r} must be a number of steps, got {shown(value)}: it is damaged"
                )
        elif (key in kinds or key == "anchor") and not (key == "momentum_buffer" and value is None):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                what = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the checkpoint's {key} of {name!r} must be a floating-point tensor, got {what}: it is damaged"
                )
            shape = shapes.get(key, p.shape)
            if value.shape != shape:
                raise ValueError(
                    f"the checkpoint's {key} of {name!r} has shape {tuple(value.shape)}, and this parameter needs "
                    f"{tuple(shape)}; is it a checkpoint of this model?"
                )


def check_maker(saved: Mapping[str, Any], group: Mapping[str, Any], here: str, base_options: Collection[str]) -> None:
    """A loaded group was made by the optimizer that loads it, or by its base alone."""
    pure = "PureOptimizer" if PURE in saved["state"] else None
    there, _, number = str(group.get("made_by") or pure or here).partition(", ")
    if number and f", {number}" != FORMAT:
        raise ValueError(
            f"the checkpoint has the {number}, and this release reads{FORMAT[1:]}; load it with the release that wrote "
            "it"
        )
    if there != here:
        raise ValueError(f"{there} made the checkpoint, and this is {here}; load it into what made it")
    missing = sorted(set(base_options) - group.keys())
    if missing:
        raise ValueError(
            f"the options of the checkpoint lack {', '.join(missing)}, which {here} needs: it is damaged, or of "
            "another optimizer"
        )
