"""Parameters by their dotted paths: what an entry names, by a path, by a parent's, or by a glob pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import translate

from ..calls import few


def matcher(entry: str) -> Callable[[str], bool]:
    """Whether a path is ``entry`` itself, lies under it, or matches it as a glob pattern, where ``*`` matches dots too.

    ``""`` is the root: every path lies under it.

    >>> below, like = matcher("head"), matcher("*.bias")
    >>> below("head.weight"), below("header"), like("body.0.bias")
    (True, False, True)
    """
    pattern = re.compile(translate(entry)).match  # made here: torch.compile takes it, and fnmatch's cache it does not
    return lambda path: entry in ("", path) or path.startswith(f"{entry}.") or pattern(path) is not None


def no_match(what: str, entry: str, paths: Sequence[str], kind: str = "parameter") -> ValueError:
    """The error of an entry that names no parameter, or nothing of another kind."""
    prefixes = (path[:i] for path in paths for i, letter in enumerate(path) if letter == ".")
    known = list(dict.fromkeys([*prefixes, *paths]))
    close = get_close_matches(entry.removesuffix("*").removesuffix("."), known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"{what} {entry!r} matches no {kind}; they are {few(list(paths))}{meant}")
