"""Where training ends over the first learning rate, a row of panels for each task and base, a panel for each way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.figures import SMALL, WIDTH, legend, save
from experiments.common.looks import looks

TITLES = {"log": "logarithm, Adam above", "raw": "raw values, same kind above"}


def sensitivity(file: Path, summary: Mapping, lrs: Sequence[float], quantity: str, label: str) -> None:
    """Medians over the seeds, and a band from the lowest to the highest.

    What is not finite or far above the loss before training is a cross at the upper end.
    """
    ways = list(next(iter(summary.values()))["ways"])
    figure = Figure(figsize=(WIDTH, 1.2 + 2.1 * len(summary)), layout="constrained")
    grid = figure.subplots(len(summary), len(ways), squeeze=False, sharex=True, sharey="row")
    drawn: dict = {}
    for row, (name, found) in enumerate(summary.items()):
        for column, way in enumerate(ways):
            axes = grid[row, column]
            _panel(axes, found, way, lrs, quantity, drawn)
            axes.set_title(f"{name}:\n{TITLES[way]}", fontsize=10)
    figure.supxlabel("first learning rate", fontsize=10)
    figure.supylabel(label, fontsize=10)
    legend(figure, drawn.values(), list(drawn))
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
    named = {"alone" if height == "0" else f"height {height}": values for height, values in rows.items()}
    of_name = looks(named)
    for name, values in named.items():
        colour, dot, _ = of_name[name]
        off = ~(values[:, 1] <= high)  # NaN as well
        inside = np.clip(np.where(np.isnan(values), np.inf, values), low, high)
        axes.fill_between(lrs, inside[:, 0], inside[:, 2], color=colour, alpha=0.18, linewidth=0)
        line = axes.plot(lrs, inside[:, 1], color=colour, linewidth=1.4, zorder=3)[0]
        drawn.setdefault(name, line)
        for those, marker, size in ((~off, dot, 12), (off, "x", 36)):
            if those.any():  # an empty one has no place, which the layout cannot take
                dots = axes.scatter(
                    np.array(lrs)[those], inside[those, 1], s=size, color=colour, marker=marker, zorder=4, clip_on=False
                )
                if marker == "x":
                    drawn.setdefault("off the scale or not finite", dots)
    axes.set_ylim(low, high)
    axes.tick_params(labelsize=SMALL)
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
