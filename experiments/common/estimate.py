"""Means over seeds, with their standard errors."""

import math
from statistics import mean, stdev

Estimate = tuple[float, float | None]  # mean, standard error (None for a single value)


def estimate(values: list[float]) -> Estimate:
    if len(values) == 1:
        return values[0], None
    return mean(values), stdev(values) / math.sqrt(len(values))


def shown(value: Estimate, signed: bool = False) -> str:
    number = f"{value[0]:+.1f}" if signed else f"{value[0]:.1f}"
    return number if value[1] is None else f"{number} ± {value[1]:.1f}"
