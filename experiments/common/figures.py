"""Figures as PNG files. They are drawn without pyplot, which would keep state for the whole process."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, estimate
from experiments.common.looks import looks

WIDTH = 5.4  # inches: text of 9 points is 9 pixels high where a page is 390 pixels wide
SMALL = 9  # points, and nothing is smaller


def save(figure: Figure, file: Path) -> None:
    """PNG, since pictures and heat maps are pixels anyway and an SVG looks as the reader's fonts do; 200 dots an inch
    are sharp on a phone, and the white ground is there on a dark page too."""
    options: dict[str, Any] = {"format": "png", "dpi": 200, "facecolor": "white", "pil_kwargs": {"optimize": True}}
    checkpoint.write(file, lambda opened: figure.savefig(opened, **options))


def panels(count: int, height: float, above: float = 0.0, columns: int = 2, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, `columns` beside each other, each so high; `above` is for what stands over them."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, above + height * rows), layout="constrained")
    found = list(np.ravel(figure.subplots(rows, columns, squeeze=False, **shared)))
    for axes in found[count:]:
        axes.set_visible(False)
    for axes in found[:count]:
        axes.tick_params(which="both", labelsize=SMALL)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found[:count]


def heading(axes: Axes, text: str, width: int = 30) -> None:
    """Over a panel, in lines of so many letters."""
    axes.set_title(fill(text, width), fontsize=10)


def legend(figure: Figure, handles: Iterable[Any], names: Sequence[str]) -> None:
    """Over the panels, in as many columns as fit."""
    lines, columns, _ = _legend(names)
    figure.legend(list(handles), lines, loc="outside upper center", ncols=columns, frameon=False, fontsize=SMALL)


def legend_height(names: Sequence[str]) -> float:
    """In inches."""
    return _legend(names)[2]


def _legend(names: Sequence[str]) -> tuple[list[str], int, float]:
    """The names in lines that are not too long, the number of columns, and the height."""
    lines = [fill(name, 65) for name in names]
    longest = max(len(line) for name in lines for line in name.split("\n"))
    entry = (40 + 5 * longest) / 72  # inches: a line, and the name beside it
    columns = max(1, min(4, len(names), int(WIDTH / entry)))
    rows = -(-len(names) // columns) * (1 + max(name.count("\n") for name in lines))
    return lines, columns, 0.2 + 0.19 * rows


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
    named_panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    ticks: Sequence[float] | None = None,
    from_zero: bool = False,
) -> None:
    """A panel for each key, in it a curve with its band for each name; a name has one look in all panels. `ticks` are
    the places on the x axis that are named; `from_zero` has 0 on the y axis."""
    names = list(dict.fromkeys(name for named in named_panels.values() for name in named))
    of_name = looks(names)
    figure, all_axes = panels(len(named_panels), 2.2 if len(named_panels) > 2 else 2.7, legend_height(names))
    drawn = {}
    for axes, (text, named) in zip(all_axes, named_panels.items(), strict=True):
        for name, (x, mean, error) in named.items():
            colour, marker, line = of_name[name]
            dots = {"marker": marker, "markersize": 4, "markevery": max(1, len(x) // 8)}
            drawn[name] = axes.plot(x, mean, color=colour, linestyle=line, linewidth=1.4, **dots)[0]
            if error is not None:
                low, high = np.subtract(mean, error), np.add(mean, error)
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        if log_x:
            axes.set_xscale("log")
            _name_ticks(axes.xaxis, axes.get_xlim())
        if ticks is not None:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        if from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        heading(axes, text, 30 if len(named_panels) > 1 else 65)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    legend(figure, [drawn[name] for name in names], names)
    save(figure, file)


def dots(file: Path, rows: Mapping[str, Mapping[str, Estimate]], x_label: str) -> None:
    """A row for each key, in it a dot with its standard error for each name."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    of_name, drawn = looks(names), {}
    ends = list(accumulate(0.4 + 0.3 * len(row) for row in rows.values()))  # of the rows, a dot 0.3 below the other
    places = [end - 0.2 - 0.15 * len(row) for end, row in zip(ends, rows.values(), strict=True)]
    figure, (axes,) = panels(1, 0.7 + 0.36 * ends[-1], legend_height(names))
    for place, row in zip(places, rows.values(), strict=True):
        for k, (name, (mean, error)) in enumerate(row.items()):
            look = {"color": of_name[name].colour, "marker": of_name[name].marker, "linestyle": "none", "markersize": 5}
            y = place + 0.15 * (2 * k + 1 - len(row))
            drawn[name] = axes.errorbar(mean, y, xerr=error, capsize=2, elinewidth=0.8, **look)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(x_label, fontsize=10)
    legend(figure, [drawn[name] for name in names], names)
    save(figure, file)


def _name_ticks(axis: Axis, ends: tuple[float, float]) -> None:
    """Of a log axis that is short: powers of ten would name too few, or overlap between."""
    low, high = ends
    if high < 20 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(4))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def montage(file: Path, pictures: Tensor, row_names: list[str]) -> None:
    """A table of pictures, each row below its name; `pictures` is [row, column, rgb, height, width] uint8."""
    rows, columns, _, height, width = pictures.shape
    cell = WIDTH / columns * height / width
    figure = Figure(figsize=(WIDTH, rows * (cell + 0.25)), layout="constrained")
    for axes, row, name in zip(np.ravel(figure.subplots(rows, squeeze=False)), pictures, row_names, strict=True):
        axes.imshow(rearrange(row, "column rgb h w -> h (column w) rgb").numpy())
        axes.set_title(name, fontsize=10, loc="left", pad=3)
        axes.set_axis_off()
    save(figure, file)
