"""Which points of a run are kept in the forward pass, and which are recomputed in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

Parts: TypeAlias = Callable[[int, int], Sequence[int]]  # where the parts of a stretch of two steps or more begin

# By the bounds of `tree_of` for K = 1000: 11 points and 4 K steps for 2, 16 and 2.75 K for 4, 29 and 2.5 K for 8.
ARITY = 4
# Updates from one whole point on: half of what neighbours take with the two moments of Adam, for 1.5 updates a step.
LINKS = 3


class Plan(NamedTuple):
    """What a run of K steps keeps."""

    parts: Parts  # of its points
    graphs: int = 0  # of so many steps at the end: they are the first to be used
    words: str = ""  # the same, for a reader
    links: bool = False  # whether points may be links

    def linked(self, points: Sequence[int]) -> set[int]:
        """Those of some points that are kept as a link: as the gradient of the step before, whose point is there."""
        found, row = set[int](), 0
        for before, k in pairwise(points) if self.links else ():
            row = row + 1 if k == before + 1 and row < LINKS else 0
            if row:
                found.add(k)
        return found


def every(n: int) -> Parts:
    """Every n-th step, and all within n steps: at most ``ceil(K / n) + n - 1`` points, fewer than K recomputations."""
    return lambda lo, hi: range(lo, hi, n if hi - lo > n else 1)


def tree_of(arity: int) -> Parts:
    """A tree of points: ``arity`` equal parts, each of which is divided likewise.

    With ``d = ceil(log_a K)``, at most ``1 + (a - 1) d`` points exist at once, and at most
    ``K ((a - 1) / a d - 1) + 1`` steps are recomputed. Each level recomputes all parts but the last, whose points the
    run before has kept, and of each part all steps but the last.
    """
    return lambda lo, hi: sorted({lo + (hi - lo) * i // arity for i in range(arity)})


def kept(parts: Parts, lo: int, hi: int) -> list[int]:
    """The steps of ``[lo, hi)`` whose points a run through it keeps: where parts begin, and those of the last part."""
    found = []
    while hi - lo > 1:
        *before, lo = parts(lo, hi)
        found += before
    return [*found, lo]


def backward_schedule(parts: Parts, lo: int, hi: int) -> Iterator[tuple[int, list[int], int]]:
    """Back through ``[lo, hi)``: the step, the points when it is used, the number of steps recomputed for it."""
    live = kept(parts, lo, hi)
    for k in range(hi - 1, lo - 1, -1):
        while live[-1] > k:
            live.pop()
        base = live[-1]
        if base < k:
            live += kept(parts, base, k + 1)[1:]
        yield k, live, k - base


def root_of(steps: int) -> int:
    """Rounded up."""
    return math.isqrt(max(steps, 1) - 1) + 1


def with_graphs(steps: int, n: int) -> Plan:
    words = "every point" if n == 0 else f"every point, and the graphs of the last {n}" if n < steps else "all graphs"
    return Plan(every(1), n, words)


def points_of_every(n: int, links: bool = False) -> Plan:
    return Plan(every(n), 0, "every point" if n == 1 else f"the points of every n-th step, n = {n}", links and n > 1)


def points_of_tree(links: bool) -> Plan:
    return Plan(tree_of(ARITY), 0, "the points of a tree", links)
