"""Means over seeds or splits, with their standard errors or intervals."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

Estimate = tuple[float, float | None]  # mean, and its error (None for a single value)


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error."""
    if len(values) == 1:
        return values[0], None
    return mean(values), stdev(values) / math.sqrt(len(values))


def interval(values: list[float]) -> Estimate:
    """Mean, and half of its 95 % interval by Student's t.

    >>> middle, half = interval([1.0, 2.0, 3.0])
    >>> middle, round(half, 2)  # 4.303 standard errors for three values
    (2.0, 2.48)
    """
    from scipy.stats import t

    middle, error = estimate(values)
    return middle, None if error is None else float(t.ppf(0.975, len(values) - 1)) * error


def chance_above(values: Sequence[float]) -> float | None:
    """The probability that the mean these are drawn around is above 0, by Student's t without a prior.

    >>> chance_above([1.0, 2.0, 3.0]) == 1 - chance_above([-1.0, -2.0, -3.0])
    True
    """
    from scipy.stats import t

    middle, error = estimate(list(values))
    return float(t.cdf(middle / error, len(values) - 1)) if error else None
