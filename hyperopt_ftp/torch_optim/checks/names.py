"""Parameter names: wrappers' prefixes dropped, what ``exclude`` names, and what an error suggests for wrong ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from torch.nn import Module

from ...calls import MOST, did_you_mean, few, warn_caller
from ...types import Excludes

#: Components that torch.compile, activation checkpointing and FSDP put anywhere into a name.
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def unwrapped(name: str) -> str:
    """``name`` as the unwrapped model calls it: ``head.weight`` for ``module._orig_mod.head.weight``."""
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
            hints = (_hint(re.sub(r"^\*\.|\.?\*$", "", part), _patterns(bare)) for part in parts)
            hint = next(filter(None, hints), "")
            if odd:
                hint += "; patterns know *, ? and [abc], no regular expressions or braces: give several in a list"
            count = f"{len(bare)} " if len(bare) > MOST else ""
            known = few(bare)
            raise ValueError(f"exclude: {shown} match no parameter; the {count}parameters are {known}{hint}")
        if self.entries and not any(held for group in groups for held in group["constrained"]):
            warn_caller(
                f"exclude leaves {title} no parameter of {len(names)} to hold, until add_param_group brings others; "
                "exclude what is new alone, such as the head"
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


# What was meant


def covering(some: Iterable[str], names: Iterable[str]) -> list[str]:
    """Patterns that match ``some`` of the names and no other: whole modules, where all of one are among them."""
    some = list(some)
    here, all_ = (Counter(p for name in group for p in _prefixes(name)) for group in (some, names))
    found = (next((f"{p}.*" for p in _prefixes(name) if here[p] == all_[p]), name) for name in some)
    return list(dict.fromkeys(found))


def no_entry(missing: Mapping[str, Tensor], names: Sequence[str], given: Mapping[str, Any], path: str | None) -> str:
    """Why an anchor lacks entries, and what to write.

    Args:
        missing: parameters without an entry.
        names: of all parameters of the group.
        given: the anchor's entries.
        path: of the file that they are in.
    """
    first, several = next(iter(missing)), len(missing) > 1
    what = f"{len(missing)} of {len(names)} parameters" if several else f"the parameter {first!r}"
    nested = [key for key, value in given.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    if nested:
        return (
            f"anchor has no entry for {what}, but {nested[0]!r} is a dict of tensors: pass that, anchor[{nested[0]!r}]"
        )
    shift = _shift(missing, given)
    if shift is not None:
        old, new = shift
        wrong, key = f"have the prefix '{old}.' too many", f'k.removeprefix("{old}.")'
        if new:
            wrong, key = f"lack the prefix '{new}.'", f'f"{new}.{{k}}"'
        entries = "state_dict" if path is None else f"safetensors.torch.load_file({path!r})"
        write = f"anchor={{{key}: v for k, v in {entries}.items()}}"
        return f"anchor has no entry for {what}: its names {wrong}; write {write}"
    if not several:
        hint = _hint(first, {name: name for name in given.keys() - set(names)})
        return f"anchor has no entry for {what}; give one, or exclude the parameter{hint}"
    which = covering(missing, names)
    if len(missing) == len(names):
        return (
            f"anchor has no entry for {what}; they are {few(names)}, and the anchor's names are {few(list(given))}; is "
            "it of another model?"
        )
    return f"anchor has no entry for {what}: {few(which)}; give them, or exclude={few(which)}"


def _shift(missing: Mapping[str, Tensor], given: Mapping[str, Any]) -> tuple[str, str] | None:
    """The prefix that the anchor's names have and that they should have, where the two alone tell most apart."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, p in missing.items():
        counts.update(("", pre) for pre in _prefixes(name) if _fits(given.get(name[len(pre) + 1 :]), p))
    for name, value in given.items():
        counts.update((pre, "") for pre in _prefixes(name) if _fits(value, missing.get(name[len(pre) + 1 :])))
    if not counts:
        return None
    best, count = counts.most_common(1)[0]
    return best if 2 * count > min(len(missing), len(given)) else None


def _hint(text: str, meant: Mapping[str, str]) -> str:
    """What is close, with the same numbers: layer 12 is no slip for layer 2."""
    numbers = re.findall(r"\d+", text)
    return did_you_mean(text, [name for name in meant if re.findall(r"\d+", name) == numbers], 0.75, meant)


def _patterns(names: Iterable[str]) -> dict[str, str]:
    """What ``exclude`` may hold, by what one writes of it: the ends of names and of modules, and both whole."""
    whole = {name: name for name in names} | {prefix: f"{prefix}.*" for name in names for prefix in _prefixes(name)}
    ends = {text: text.rpartition(".")[2] for text in whole}
    found = {end: f"*.{end}{'' if whole[text] == text else '.*'}" for text, end in ends.items() if not end.isdigit()}
    return found | whole


def _prefixes(name: str) -> Iterator[str]:
    """Of the modules around what has this name, the outermost first."""
    return (name[:i] for i, letter in enumerate(name) if letter == ".")


def _fits(value: Any, p: Tensor | None) -> bool:
    return isinstance(value, Tensor) and p is not None and value.shape == p.shape


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(x, Tensor) for x in value.values())
