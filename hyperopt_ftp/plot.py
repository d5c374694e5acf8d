"""Figures of what an optimizer does. Needs matplotlib (``pip install 'hyperopt-ftp[plot]'``), imported when used."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import tree
from .types import Field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind eyes tell apart; without their yellow, which white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")

__all__ = ["distances", "history", "radii", "traces"]


def history(path: str | os.PathLike[str], field: Field = "radius") -> tuple[list[int], list[str], list[list[float]]]:
    """Steps, layers and values of one field of a CSV file that :func:`hyperopt_ftp.watch` has written.

    If the steps go back, a run was resumed there, and the earlier rows from that step on are ignored. A truncated line
    is ignored too.

    Args:
        path: of the file.
        field: ``"radius"``, ``"distance"``, ``"clipped"`` or ``"omega"``.

    Returns:
        ``steps``, ``layers`` and ``values[step][layer]``; NaN before a layer's first step. Three empty lists for a file
        without rows.

    Raises:
        ValueError: a file without that column.
    """
    known: dict[int, dict[str, float]] = {}
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        there = list(rows.fieldnames or ())
        if not {"step", "layer", field} <= set(there):
            raise ValueError(f"{os.fspath(path)} has no column {field!r}, it has {there}; hft.watch writes such files")
        for row in rows:
            if None in row or None in row.values():
                continue
            if not row["step"].isdecimal():
                raise ValueError(
                    f"{os.fspath(path)}, line {rows.line_num}: step must be a number, got {row['step']!r}; hft.watch "
                    "writes such files"
                )
            step = int(row["step"])
            if known and step < next(reversed(known)):
                known = {earlier: layers for earlier, layers in known.items() if earlier < step}
            known.setdefault(step, {})[row["layer"]] = float(row[field] or "nan")
    layers = list(dict.fromkeys(layer for values in known.values() for layer in values))
    return list(known), layers, [[values.get(layer, float("nan")) for layer in layers] for values in known.values()]


def radii(steps: Sequence[int], layers: Sequence[str], values: Any, label: str = "radius") -> Figure:
    """Heat map of a number of each layer over the steps, on a log scale.

    Args:
        steps: when it was measured.
        layers: names, from the first layer down.
        values: ``values[step][layer]``, as :func:`history` returns them. All below 1e-4 of the largest have one colour;
            values that are not finite are white.
        label: of the colour bar.

    Returns:
        A ``matplotlib.figure.Figure``; ``figure.savefig("radii.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: values that are not ``len(steps)`` times ``len(layers)`` numbers; no steps or no layers.
    """
    row = max(0.06, 0.15 * min(1.0, 30 / max(1, len(layers))))  # inches; a name needs 0.15
    figure = _figure(5 + 0.07 * max(map(len, layers), default=0), 1.5 + row * len(layers))
    from matplotlib.colors import LogNorm

    if not steps or not layers:
        raise ValueError(f"there is nothing to draw: {len(steps)} steps of {len(layers)} layers")
    table = torch.as_tensor(values, dtype=torch.float64)
    if table.shape != (len(steps), len(layers)):
        raise ValueError(f"values must be {len(steps)} steps of {len(layers)} layers, got {tuple(table.shape)}")
    table = table.where(table.isfinite(), float("nan"))  # of a training that diverged
    finite = table[table.isfinite()]
    high = max(float(finite.max()), 1e-8) if finite.numel() else 1e-8
    axes = figure.subplots()
    shown = table.T.clamp(min=1e-4 * high).numpy()
    mesh = axes.pcolormesh(
        steps, range(len(layers)), shown, norm=LogNorm(1e-4 * high, high), shading="nearest", cmap="viridis"
    )
    axes.invert_yaxis()
    every = math.ceil(0.15 / row)
    axes.set_yticks(range(0, len(layers), every), list(layers)[::every], fontsize=9)
    axes.set_xlabel("step")
    figure.colorbar(mesh, label=label, extend="min")
    return figure


def distances(measured: Mapping[Any, Mapping[str, float]], field: Field = "distance") -> Figure:
    """Bars of a number of each layer, from :func:`hyperopt_ftp.measure`.

    Args:
        measured: by layer. Layers without the field, and values that are not finite, have no bar.
        field: ``"distance"``, ``"radius"``, ``"clipped"`` or ``"omega"``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no layer has the field.
        TypeError: anything but the result of :func:`hyperopt_ftp.measure`.
    """
    if not isinstance(measured, Mapping) or not all(isinstance(layer, Mapping) for layer in measured.values()):
        raise TypeError("measured must be what hft.measure(opt) gives: a dict of numbers for each layer")
    shown = {str(name): layer[field] for name, layer in measured.items() if field in layer}
    if not shown:
        fields = sorted({f for layer in measured.values() for f in layer})
        raise ValueError(f"no layer has a {field!r}; there are {fields or 'no layers: has the optimizer made a step?'}")
    figure = _figure(6, 1.2 + 0.16 * len(shown))
    axes = figure.subplots()
    axes.barh(range(len(shown)), [x if math.isfinite(x) else math.nan for x in shown.values()], color=_COLOURS[0])
    axes.set_yticks(range(len(shown)), list(shown), fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(field)
    return figure


def traces(states: Iterable[Any], steps: Sequence[int] | None = None) -> Figure:
    """The tuned hyperparameters of a tower over the steps, one panel for each level.

    A hyperparameter that holds several numbers (a table of :func:`hyperopt_ftp.per_step`) has a line for each, of one
    colour.

    Args:
        states: of an optimizer made by :func:`hyperopt_ftp.hyper`, one after each step, or the records of
            :func:`hyperopt_ftp.bilevel`. If ``state.by`` is itself tuned, it is the next level.
        steps: of the states; ``None``: 1, 2, 3 and so on.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no states, or states without tuned hyperparameters; another number of steps.

    >>> import torch, hyperopt_ftp as hft
    >>> from hyperopt_ftp import plot
    >>> opt = hft.hyper(hft.sgd(lr=0.01), by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(lr=1e-6), over="lr"), over="lr")
    >>> w, states = torch.ones(3), []
    >>> state = opt.init(w)
    >>> for _ in range(20):
    ...     w, state = opt.update(w, state, w)
    ...     states.append(state)
    >>> figure = plot.traces(states)
    >>> [axes.get_title() for axes in figure.axes]
    ['level 1', 'level 2']
    """
    levels: list[dict[str, list[list[float]]]] = []
    for state in states:
        for height, tuned in enumerate(_levels(state)):
            if height == len(levels):
                levels.append({})
            for name, value in tree.by_path(tuned).items():
                levels[height].setdefault(name, []).append(value.detach().flatten().tolist())
    counts = {len(values) for named in levels for values in named.values()}
    if steps is not None and counts - {len(steps)}:
        raise ValueError(f"steps must be one for each of the {max(counts)} states, got {len(steps)}")
    if not levels:
        raise ValueError("states must be a sequence of states of hft.hyper(...), which have tuned hyperparameters")
    figure = _figure(6, 0.8 + 2.2 * len(levels))
    panels = figure.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
    for height, (axes, named) in enumerate(zip(panels, levels, strict=True)):
        for (name, values), colour in zip(named.items(), cycle(_COLOURS)):
            lines = axes.plot(range(1, len(values) + 1) if steps is None else steps, values, color=colour)
            lines[0].set_label(name)
        axes.set_title(f"level {height + 1}", fontsize=10)
        axes.legend(frameon=False, fontsize=9)
    panels[-1].set_xlabel("step")
    return figure


def _levels(state: Any) -> list[dict[str, Tensor]]:
    """Tuned hyperparameters from the level that trains upward."""
    found = []
    while hasattr(state, "tuned"):
        found.append(state.tuned)
        state = getattr(state, "by", None)
    return found


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'hyperopt-ftp[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")
