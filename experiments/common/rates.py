"""The choice of a learning rate: what was tried, by the rate as text (so JSON keeps it), with its score."""

from collections.abc import Mapping, Sequence


def untried(lrs: Sequence[float], tried: Mapping[str, float]) -> list[float]:
    """What is left to try."""
    return [lr for lr in lrs if str(lr) not in tried]


def best(tried: Mapping[str, float]) -> float | None:
    """Of two equally good ones the smaller; None where none was tried."""
    return float(max(tried, key=lambda lr: (tried[lr], -float(lr)))) if tried else None
