"""The figure of a recipe: named curves, and points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def draw(path: str, curves: Mapping[str, Any], points: Mapping[str, Any] | None = None, **axes: Any) -> None:
    """Write the figure. A curve is a list of values, or a tuple of x and y; ``axes`` are those of ``Axes.set``."""
    from matplotlib.figure import Figure  # of the extra `examples`

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.add_subplot(**axes)
    for name, curve in curves.items():
        ax.plot(*(curve if isinstance(curve, tuple) else (curve,)), label=name)
    for name, (x, y) in (points or {}).items():
        ax.plot(x, y, ".", color="black", label=name)
    ax.legend()
    figure.savefig(path, dpi=120)
