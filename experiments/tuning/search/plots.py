"""The figure of the study: what is gained at equal time against the number of hyperparameters."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.estimate import Estimate
from experiments.common.figures import COLOURS, save

WIDE = ("#000000", "#D55E00")  # of the groups
Line = list[tuple[int, Estimate]]


def gain_by_size(file: Path, lines: Mapping[str, Line], chosen: Mapping[str, Line], order: list[str]) -> None:
    """One line for each contender, with standard errors; `order` gives each its colour, as in the other figure. Wide
    and behind them, one line for each group."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({size for points in lines.values() for size, _ in points})
    for (name, points), colour in zip(chosen.items(), WIDE, strict=True):
        x, y = [size for size, _ in points], [mean for _, (mean, _) in points]
        axes.plot(x, y, color=colour, marker="s", markersize=9, linewidth=6, alpha=0.3, label=name)
    for number, (name, points) in enumerate(lines.items()):
        place = order.index(name)
        apart = 1.025 ** (number - (len(lines) - 1) / 2)  # error bars beside each other
        axes.errorbar(
            [size * apart for size, _ in points],
            [mean for _, (mean, _) in points],
            [error or 0.0 for _, (_, error) in points],
            color=COLOURS[place % len(COLOURS)],
            linestyle="-" if place < len(COLOURS) else "--",
            marker="osD^vPX"[place % 7],
            markersize=5,
            linewidth=1.3,
            capsize=2,
            label=name,
        )
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("number of hyperparameters")
    axes.set_ylabel("test loss below the default's (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save(figure, file)
