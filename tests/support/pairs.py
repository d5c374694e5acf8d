"""Choices of options in which every two values meet: most faults need no more than two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Choice = dict[str, Any]


def pairs(choices: Mapping[str, Sequence[Any]]) -> list[Choice]:
    """Greedily the choice that has most pairs of values which no one before it has.

    >>> len(pairs({"a": [0, 1], "b": [0, 1], "c": [0, 1]}))
    4
    """
    names = list(choices)
    every = list(product(*(range(len(values)) for values in choices.values())))
    left = {pair for chosen in every for pair in _pairs_of(chosen)}
    found = []
    while left:
        best = max(every, key=lambda chosen: sum(pair in left for pair in _pairs_of(chosen)))
        left -= set(_pairs_of(best))
        found.append({name: choices[name][i] for name, i in zip(names, best, strict=True)})
    return found


def _pairs_of(chosen: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Of one option there is no pair: each value."""
    yield from combinations(enumerate(chosen), min(2, len(chosen)))
