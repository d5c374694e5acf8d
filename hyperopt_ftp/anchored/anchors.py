"""The tensors that weights stay near, by path, and the hyperparameters that belong to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import tree
from ..calls import few
from ..hparams import check_zero_d


def anchors(anchor: Any) -> dict[str, Tensor]:
    fixed = tree.by_path(anchor)
    if anchor is None:
        raise TypeError("anchor must be the weights to stay near, a tensor or a tree of tensors, got None")
    for name, value in fixed.items():
        if value is anchor and not isinstance(value, Tensor):
            raise TypeError(
                f"anchor must be a tensor or a tree of tensors, got a {type(anchor).__name__}; of a module take "
                "{n: p.detach().clone() for n, p in module.named_parameters()}"
            )
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"anchor must hold floating-point tensors, but its entry {name!r} is {what}")
    return fixed


def check_anchor(fixed: dict[str, Tensor], params: Any) -> None:
    given = tree.by_path(params)
    extra = [name for name in fixed if name not in given]
    if extra:
        raise ValueError(
            f"anchor has entries {few(extra)} that are not parameters; the parameters are {few(list(given))}"
        )
    for name, w0 in fixed.items():
        if w0.shape != given[name].shape:
            raise ValueError(
                f"anchor entry {name!r} has shape {tuple(w0.shape)}, its parameter {tuple(given[name].shape)}"
            )
        if w0.device != given[name].device:
            raise ValueError(
                f"anchor entry {name!r} is on {w0.device}, and its parameter on {given[name].device}: each update "
                "would copy it; move the anchor there, {n: x.to(device) for n, x in anchor.items()}"
            )


def check_same_names(key: str, names: Any, fixed: dict[str, Tensor]) -> None:
    if names != fixed.keys():
        raise ValueError(f"{key} must have the names of the anchor {list(fixed)}, got {list(names)}")


def numbers(key: str, value: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    found = by_name(key, value, fixed)
    for x in found.values():
        check_zero_d(key, x)
    return found


def by_name(key: str, value: Any, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hparam ``key`` of each constrained tensor: one for all, or a tree that has one for each."""
    if isinstance(value, Tensor):
        return dict.fromkeys(fixed, value)
    given = tree.by_path(value)
    missing = [name for name in fixed if name not in given]
    if missing:
        raise ValueError(f"{key} has no entry for {missing[0]!r}, only for {list(given)}")
    return {name: given[name] for name in fixed}
