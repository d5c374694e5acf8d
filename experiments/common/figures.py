"""Figures as PNG files. They are drawn without pyplot, which would keep state for the whole process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, estimate
from hyperopt_ftp import plot

# Told apart by colour-blind eyes too (Okabe and Ito), and two more for the longest tables.
COLOURS = (
    "#999999", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#000000", "#F0E442", "#7A5C00",
)  # fmt: skip


def save(figure: Figure, file: Path) -> None:
    checkpoint.write(file, lambda opened: figure.savefig(opened, format="png", dpi=120))


def grouped_bars(file: Path, groups: list[str], bars: dict[str, list[tuple[float, float | None]]], label: str) -> None:
    """For every group one bar per name, each with its mean and standard error (None: no error bar)."""
    figure = Figure(figsize=(1.2 + len(groups) * max(1.9, 0.45 * len(bars)), 4), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    width = 0.8 / len(bars)
    lowest = min(mean - (error or 0) for values in bars.values() for mean, error in values)
    bottom = max(0.0, 10 * np.floor(lowest / 10 - 0.5))  # differences of a few points must be visible
    for number, (name, values) in enumerate(bars.items()):
        means = np.array([mean for mean, _ in values])
        errors = np.array([error or 0.0 for _, error in values])
        drawn = None if all(error is None for _, error in values) else errors
        places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
        hatch = "//" if number >= len(COLOURS) else None  # colours come a second time
        axes.bar(places, means - bottom, width, bottom=bottom, yerr=drawn, capsize=3, label=name, hatch=hatch)
        for place, mean, error in zip(places, means, errors, strict=True):
            axes.annotate(
                f"{mean:.1f}", (place, mean + error), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylabel(label if bottom == 0 else f"{label}; the axis starts at {bottom:.0f}")
    axes.set_ylim(bottom=bottom)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(5, len(bars)), frameon=False)
    save(figure, file)


def trade_off(file: Path, points: dict[str, tuple[Estimate, Estimate]], labels: tuple[str, str]) -> None:
    """One point per name with its standard errors: what is learned against what is kept."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, ((x, x_error), (y, y_error))) in enumerate(points.items()):
        colour, marker = COLOURS[number % len(COLOURS)], "osD^v"[number % 5]
        face = "white" if number >= len(COLOURS) else colour  # colours come a second time
        look = {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": "none", "capsize": 2}
        axes.errorbar(x, y, y_error, x_error, label=name, **look)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save(figure, file)


def lines(
    file: Path, panels: dict[str, dict[str, list[tuple[float, float | None]]]], places: list[str], label: str
) -> None:
    """Side by side one panel for each key, in it one line per name: its mean and standard error at each place."""
    figure = Figure(figsize=(1 + 3.2 * len(panels), 4.2), layout="constrained")
    drawn = {}
    all_axes = np.ravel(figure.subplots(1, len(panels), sharey=True))
    for axes, (heading, named) in zip(all_axes, panels.items(), strict=True):
        axes.set_prop_cycle(color=COLOURS)
        for number, (name, values) in enumerate(named.items()):
            apart = 0.04 * (number - (len(named) - 1) / 2)  # error bars beside each other
            means = [mean for mean, _ in values]
            errors = [error or 0.0 for _, error in values]
            drawn[name] = axes.errorbar(
                np.arange(len(places)) + apart, means, yerr=errors, marker="o", markersize=4, capsize=2
            )
        axes.set_title(heading, fontsize=10)
        axes.set_xticks(np.arange(len(places)), places, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel(label, fontsize=10)
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(figure, file)


class Curve(NamedTuple):
    """A line, and half the height of the band around it (None: no band)."""

    x: Sequence[float]
    mean: Sequence[float]
    error: Sequence[float] | None = None


def mean_curve(x: Sequence[float], values: Sequence[Sequence[float]]) -> Curve:
    """The mean and standard error, place by place, of the values that each seed has."""
    found = [estimate(list(at)) for at in zip(*values, strict=True)]
    errors = [error for _, error in found if error is not None]
    return Curve(x, [mean for mean, _ in found], errors or None)


def curves(
    file: Path,
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    ticks: Sequence[float] | None = None,
    columns: int = 3,
) -> None:
    """A panel for each key, at most `columns` beside each other, in it a curve with its band for each name; a name has
    one colour and one marker in all panels. `ticks` are the places on the x axis that are named."""
    names = list(dict.fromkeys(name for named in panels.values() for name in named))
    width = min(columns, len(panels))
    rows = -(-len(panels) // width)
    entry = (40 + 5 * max(map(len, names))) / 72  # inches of the legend: a line, and the name beside it
    inches = max(1 + 3.4 * width, entry)
    beside = max(1, min(5, len(names), int(inches / entry)))
    above = 0.3 + 0.19 * -(-len(names) // beside)
    figure = Figure(figsize=(inches, max(0.8, above) + 2.9 * rows), layout="constrained")
    drawn, all_axes = {}, np.atleast_1d(figure.subplots(rows, width)).ravel()
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for axes, (heading, named) in zip(all_axes[: len(panels)], panels.items(), strict=True):
        for name, (x, mean, error) in named.items():
            number = names.index(name)
            colour, dashes = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
            marker = {"marker": "osD^vPX"[number % 7], "markersize": 4, "markevery": max(1, len(x) // 10)}
            drawn[name] = axes.plot(x, mean, color=colour, linestyle=dashes, linewidth=1.5, **marker)[0]
            if error is not None:
                low, high = np.subtract(mean, error), np.add(mean, error)
                if log_y:
                    low = np.maximum(low, np.multiply(mean, 1e-3))  # a band below 0 has no place on a log axis
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        if log_x:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            if high < 20 * low:  # about a decade, in which ticks would be named by powers of ten and overlap
                wide = high > 4 * low
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(4))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
        if ticks is not None:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_title(heading, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles = [drawn[name] for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=beside, frameon=False, fontsize=9)
    save(figure, file)


def heat_map(file: Path, names: list[str], steps: list[int], values: list[list[float]], label: str) -> None:
    """One row per layer, one column per step, colours on a log scale. `values` is [step][layer]."""
    save(plot.radii(steps, names, values, label), file)


def montage(file: Path, pictures: Tensor, row_names: list[str]) -> None:
    """A table of pictures, `pictures` is [row, column, rgb, height, width] uint8."""
    sheet = rearrange(pictures, "row column rgb h w -> (row h) (column w) rgb").numpy()
    rows, columns, _, height, _ = pictures.shape
    margin = 0.4 + 0.1 * max(map(len, row_names))  # for the names
    figure = Figure(figsize=(margin + 0.6 * columns, 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet)
    axes.set_yticks(np.arange(rows) * height + height / 2, row_names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, file)
