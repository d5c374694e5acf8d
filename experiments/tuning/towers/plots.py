"""Where training ends over the first learning rate, a panel for each task and base, a row of panels for each way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.figures import COLOURS, save

TITLES = {"log": "logarithm, Adam above", "raw": "raw values, same kind above"}
MARKERS = "osD^vPX"


def sensitivity(file: Path, summary: Mapping, lrs: Sequence[float], quantity: str, label: str) -> None:
    """Medians over the seeds, and a band from the lowest to the highest.

    What is not finite or far above the loss before training is a cross at the upper end.
    """
    ways = list(next(iter(summary.values()))["ways"])
    figure = Figure(figsize=(max(6.5, 1 + 3.1 * len(summary)), 1.2 + 2.7 * len(ways)), layout="constrained")
    grid = figure.subplots(len(ways), len(summary), squeeze=False, sharex=True, sharey="col")
    drawn: dict = {}
    for column, (name, found) in enumerate(summary.items()):
        for row, way in enumerate(ways):
            axes = grid[row, column]
            _panel(axes, found, way, lrs, quantity, drawn)
            axes.set_title(f"{name}: {TITLES[way]}", fontsize=9)
    figure.supxlabel("first learning rate", fontsize=10)
    figure.supylabel(label, fontsize=10)
    figure.legend(
        drawn.values(),
        drawn.keys(),
        loc="outside upper center",
        ncols=4 if len(summary) < 3 else 8,
        frameon=False,
        fontsize=9,
    )
    save(figure, file)


def _panel(axes: Axes, found: Mapping, way: str, lrs: Sequence[float], quantity: str, drawn: dict) -> None:
    axes.set_xscale("log")
    rows = {height: np.array(one["bands"][quantity], dtype=float) for height, one in found["ways"][way].items()}
    low, high = _ends(found, quantity)
    steep = high / low > 20
    axes.set_yscale("log" if steep else "linear")
    if quantity == "train":
        drawn["loss before training"] = axes.axhline(found["start"], color="#bbbbbb", linewidth=0.8, linestyle=":")
        drawn["counts as good below"] = axes.axhline(found["good"][0], color="#777777", linewidth=0.8, linestyle="--")
    for number, (height, values) in enumerate(rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        off = ~(values[:, 1] <= high)  # NaN as well
        inside = np.clip(np.where(np.isnan(values), np.inf, values), low, high)
        axes.fill_between(lrs, inside[:, 0], inside[:, 2], color=colour, alpha=0.18, linewidth=0)
        line = axes.plot(lrs, inside[:, 1], color=colour, linewidth=1.4, zorder=3)[0]
        drawn.setdefault("alone" if height == "0" else f"height {height}", line)
        for those, marker, size in ((~off, MARKERS[number % len(MARKERS)], 12), (off, "x", 36)):
            if those.any():  # an empty one has no place, which the layout cannot take
                dots = axes.scatter(
                    np.array(lrs)[those], inside[those, 1], s=size, color=colour, marker=marker, zorder=4, clip_on=False
                )
                if marker == "x":
                    drawn.setdefault("off the scale or not finite", dots)
    axes.set_ylim(low, high)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _ends(found: Mapping, quantity: str) -> tuple[float, float]:
    """Of the axis, the same in all ways."""
    every = [np.array(one["bands"][quantity], dtype=float) for way in found["ways"].values() for one in way.values()]
    lowest = min(float(np.nanmin(values)) for values in every)
    if quantity == "lr":
        return 1e-8, 1e2
    if found["start"] / lowest > 20:
        return lowest / 1.5, 3 * found["start"]
    return lowest - 0.08 * (found["start"] - lowest), found["start"] + 0.3 * (found["start"] - lowest)
