"""Parameter names: wrappers' prefixes dropped, and what ``exclude`` names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from torch.nn import Module

from ...calls import MOST, callers_level, few
from ...types import Excludes
from .hints import near_pattern, suggested

#: Components that torch.compile, activation checkpointing and FSDP put anywhere into a name.
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def unwrapped(name: str) -> str:
    """``name`` as the unwrapped model calls it.

    >>> unwrapped("module._orig_mod.head.weight")
    'head.weight'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] == "module" else parts)


class Exclude:
    """Unconstrained parameters: glob patterns on names, tensors, or modules."""

    def __init__(self, entries: Excludes) -> None:
        kinds = (str, Tensor, Module)
        given = [entries] if isinstance(entries, kinds) else () if entries is None else entries
        if not isinstance(given, Iterable) or isinstance(given, Mapping):
            given = [given]
        self.entries: list[str | Tensor] = []
        for entry in given:
            if not isinstance(entry, kinds):
                hint = "; give names: [n for n, _ in model.named_parameters() if ...]" if callable(entry) else ""
                raise TypeError(
                    "exclude must hold glob patterns on names, such as 'head.*' (no regular expressions), tensors, or "
                    f"modules, got {type(entry).__name__}{hint}"
                )
            inside = list(entry.parameters()) if isinstance(entry, Module) else [entry]
            if not inside:
                raise ValueError(f"exclude: a {type(entry).__name__} has no parameters; leave it out")
            self.entries += inside

    def of(self, names: Sequence[str] | None, params: Sequence[Tensor]) -> list[bool]:
        """Whether each parameter is excluded. A pattern sees the name with and without its wrappers' components."""
        patterns = [entry for entry in self.entries if isinstance(entry, str)]
        if patterns and names is None:
            raise ValueError(
                f"exclude patterns {patterns} need names: pass model.named_parameters(), or exclude tensors or "
                "modules, such as model.head (of a model of timm: model.get_classifier())"
            )
        pairs = zip(names or [""] * len(params), params, strict=True)
        return [any(_matches(entry, name, p) for entry in self.entries) for name, p in pairs]

    def check(self, groups: Sequence[Mapping[str, Any]], title: str) -> None:
        """``ValueError`` for what matches no parameter; a warning where nothing is left to hold."""
        names = names_in(groups)
        pairs = list(zip(map(str, names), (p for group in groups for p in group["params"]), strict=True))
        missed = [entry for entry in self.entries if not any(_matches(entry, name, p) for name, p in pairs)]
        if missed:
            shown = [e if isinstance(e, str) else f"a tensor of shape {tuple(e.shape)}" for e in missed]
            bare = [unwrapped(str(name)) for name in names]
            texts = [entry for entry in missed if isinstance(entry, str)]
            odd = [text for text in texts if re.search(r"[\\^$(){}|+]", text)]
            parts = [part.strip() for text in texts if text not in odd for part in text.split(",")]
            hint = suggested(near_pattern(part, bare) for part in parts)
            if odd:
                hint += "; patterns know *, ? and [abc], no regular expressions or braces: give several in a list"
            count = f"{len(bare)} " if len(bare) > MOST else ""
            known = few(bare)
            raise ValueError(f"exclude: {shown} match no parameter; the {count}parameters are {known}{hint}")
        if self.entries and not any(held for group in groups for held in group["constrained"]):
            warnings.warn(
                f"exclude leaves {title} no parameter of {len(names)} to hold, until add_param_group brings others; "
                "exclude what is new alone, such as the head",
                stacklevel=callers_level(),
            )


def _matches(entry: str | Tensor, name: str, p: Tensor) -> bool:
    if isinstance(entry, Tensor):
        return entry is p
    return fnmatchcase(unwrapped(name), entry) or fnmatchcase(name, entry)


def names_in(groups: Sequence[Mapping[str, Any]], only: Mapping[str, Any] | None = None) -> list[Any]:
    """Names of all parameters of groups in order, or of one of the groups; their indices where they have none."""
    names: list[Any] = []
    for group in groups:
        here = group.get("param_names") or range(len(names), len(names) + len(group["params"]))
        if group is only:
            return list(here)
        names += here
    return names
