"""The choice of a number: what was tried, by the number as text (so JSON keeps it), with its score."""

from collections.abc import Mapping, Sequence


def untried(numbers: Sequence[float], tried: Mapping[str, float]) -> list[float]:
    """What is left to try."""
    return [number for number in numbers if str(number) not in tried]


def best(tried: Mapping[str, float], usual: float | None = None) -> float | None:
    """Of two equally good ones the smaller; `usual` where none was tried."""
    return float(max(tried, key=lambda number: (tried[number], -float(number)))) if tried else usual
