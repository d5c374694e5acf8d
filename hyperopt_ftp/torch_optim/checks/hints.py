"""What an error about parameters' names suggests: patterns that were meant, prefixes that are missing or too many."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from ...calls import few


def covering(some: Iterable[str], names: Iterable[str]) -> list[str]:
    """Patterns that match ``some`` of the names and no other: whole modules, where all of one are among them."""
    some = list(some)
    here, all_ = (Counter(p for name in group for p in _prefixes(name)) for group in (some, names))
    found = (next((f"{p}.*" for p in _prefixes(name) if here[p] == all_[p]), name) for name in some)
    return list(dict.fromkeys(found))


def suggested(meant: Iterable[str | None]) -> str:
    """The end of an error, from what was probably meant by each wrong entry."""
    found = list(dict.fromkeys(filter(None, meant)))
    return f"; did you mean {repr(found[0]) if len(found) == 1 else found}?" if found else ""


def near_name(text: str, names: Iterable[str]) -> str | None:
    """The name most like ``text``, with the same numbers in it."""
    numbers = re.findall(r"\d+", text)
    close = get_close_matches(text, [name for name in names if re.findall(r"\d+", name) == numbers], 1, 0.75)
    return close[0] if close else None


def near_pattern(pattern: str, names: Sequence[str]) -> str | None:
    """The pattern that was probably meant by one that matches none of the names: a whole name, or the end of one."""
    modules = dict.fromkeys(p for name in names for p in _prefixes(name))
    whole = {**{name: name for name in names}, **{module: f"{module}.*" for module in modules}}
    meant: dict[str, str] = {}
    for text, found in whole.items():
        end = text.rpartition(".")[2]
        if not end.isdigit():
            meant[end.lower()] = f"*.{end}" if text == found else f"*.{end}.*"
    meant |= {text.lower(): found for text, found in whole.items()}
    close = near_name(pattern.removeprefix("*.").removesuffix("*").removesuffix(".").lower(), meant)
    return None if close is None else meant[close]


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
        meant = near_name(first, given.keys() - set(names))
        hint = "" if meant is None else f"; is the entry {meant!r} meant?"
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


def _prefixes(name: str) -> Iterator[str]:
    """Of the modules around what has this name, the outermost first."""
    return (name[:i] for i, letter in enumerate(name) if letter == ".")


def _fits(value: Any, p: Tensor | None) -> bool:
    return isinstance(value, Tensor) and p is not None and value.shape == p.shape


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(x, Tensor) for x in value.values())
