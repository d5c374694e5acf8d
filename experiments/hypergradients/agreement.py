"""How alike two hypergradients are: vectors with an entry for each layer."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """Of a vector h with a reference r."""

    cosine: float  # <h, r> / (|h| |r|) over the layers
    signs: float  # share of layers with the same sign: the radius is moved the same way (Adam is scale-free)
    ratio: float  # |h| / |r|


def agreement(h: Sequence[float], reference: Sequence[float]) -> Agreement:
    """NaN where a norm is 0.

    >>> agreement([1.0, -1.0], [2.0, 0.0])
    Agreement(cosine=0.7071067811865475, signs=0.5, ratio=0.7071067811865476)
    """
    own, other = math.hypot(*h), math.hypot(*reference)
    if own == 0 or other == 0:
        return Agreement(math.nan, math.nan, math.nan)
    inner = math.fsum(a * b for a, b in zip(h, reference, strict=True))
    same = sum(_sign(a) == _sign(b) for a, b in zip(h, reference, strict=True))
    return Agreement(inner / own / other, same / len(h), own / other)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
