"""Figures of scores of methods: a row for each method, and what is learned against what is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.estimate import Estimate
from experiments.common.figures import SMALL, WIDTH, heading, legend, legend_height, save
from experiments.common.looks import looks


def rows_of_scores(
    file: Path, sets: Sequence[str], scores: Mapping[str, Sequence[Estimate]], label: str, level: str | None = None
) -> None:
    """A panel for each test set and in it a row for each name: its mean, which is written at the right, and its
    standard error. The mean of `level` is a line through all rows."""
    of_name, names = looks(scores), list(scores)
    lines = -(-len(sets) // 3)
    beside = -(-len(sets) // lines)
    figure = Figure(figsize=(WIDTH, lines * (0.7 + 0.21 * len(names)) + 0.2), layout="constrained")
    grid = figure.subplots(lines, beside, squeeze=False)
    for axes in grid.flat[len(sets) :]:
        axes.set_visible(False)
    for number, (axes, title) in enumerate(zip(grid.flat, sets, strict=False)):
        for place, (name, values) in enumerate(scores.items()):
            mean, error = values[number]
            colour, marker, _ = of_name[name]
            axes.errorbar(mean, place, xerr=error, color=colour, marker=marker, markersize=5, capsize=2)
            axes.annotate(f"{mean:.1f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
        if level is not None and level in scores:
            axes.axvline(scores[level][number][0], color=of_name[level].colour, linewidth=0.8, linestyle="--", zorder=0)
        axes.margins(x=0.12)
        axes.set_ylim(len(names) - 0.5, -0.5)
        first = number % beside == 0
        axes.set_yticks(range(len(names)), names if first else [""] * len(names), fontsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(2))
        axes.tick_params(labelsize=SMALL)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        heading(axes, title, 16)
    figure.supxlabel(label, fontsize=10)
    save(figure, file)


def trade_off(file: Path, points: Mapping[str, tuple[Estimate, Estimate]], axis_labels: tuple[str, str]) -> None:
    """A point for each name with its standard errors: what is learned against what is kept."""
    of_name, drawn = looks(points), []
    figure = Figure(figsize=(WIDTH, 4.6 + legend_height(list(points))), layout="constrained")
    axes = figure.subplots()
    for name, ((x, x_error), (y, y_error)) in points.items():
        colour, marker, _ = of_name[name]
        look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
        drawn.append(axes.errorbar(x, y, y_error, x_error, capsize=2, elinewidth=0.8, **look))
    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    axes.margins(0.12, 0.08)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, drawn, list(points))
    save(figure, file)


def unbeaten(points: Mapping[str, tuple[Estimate, Estimate]]) -> str:
    """Says which points none is both further right and further up than."""
    means = {name: (x, y) for name, ((x, _), (y, _)) in points.items()}
    best = [
        name for name, (x, y) in means.items() if not any(other[0] > x and other[1] > y for other in means.values())
    ]
    return f"Not beaten in both at once: {'; '.join(best)}."  # there are commas in names
