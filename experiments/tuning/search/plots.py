"""The figure of the study: what is gained at equal time against the number of hyperparameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.estimate import Estimate
from experiments.common.figures import SMALL, WIDTH, legend, legend_height, save
from experiments.common.looks import GREY, RED, looks

WIDE = (GREY, RED)  # of the groups
Line = list[tuple[int, Estimate]]


def gain_by_size(file: Path, lines: Mapping[str, Line], chosen: Mapping[str, Line]) -> None:
    """One line for each contender, with standard errors. Wide and behind them, one line for each group."""
    names = [*chosen, *lines]
    figure = Figure(figsize=(WIDTH, 4.2 + legend_height(names)), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({size for points in lines.values() for size, _ in points})
    drawn = []
    for points, colour in zip(chosen.values(), WIDE, strict=True):
        x, y = [size for size, _ in points], [mean for _, (mean, _) in points]
        drawn += axes.plot(x, y, color=colour, marker="s", markersize=9, linewidth=6, alpha=0.3)
    for number, (points, look) in enumerate(zip(lines.values(), looks(lines).values(), strict=True)):
        apart = 1.025 ** (number - (len(lines) - 1) / 2)  # error bars beside each other
        x, y = [size * apart for size, _ in points], [mean for _, (mean, _) in points]
        errors = [error or 0.0 for _, (_, error) in points]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
        drawn.append(axes.errorbar(x, y, errors, markersize=4, linewidth=1.3, elinewidth=0.8, capsize=2, **style))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("number of hyperparameters")
    axes.set_ylabel("test loss below the default's (%)")
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, drawn, names)
    save(figure, file)
