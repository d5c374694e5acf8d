"""The figure of all layers' gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.common.figures import SMALL, panels, save
from experiments.common.looks import BLUE


def scatter(file: Path, points: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str) -> None:
    """One dot for each layer: a gradient against the reference, both axes linear near 0 and logarithmic beyond."""
    figure, all_axes = panels(len(points), 2.6)
    for axes, (label, (x, y)) in zip(all_axes, points.items(), strict=True):
        size = max(np.abs(x).max(), np.abs(y).max())
        near = size / 1000
        axes.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
        axes.axhline(0, color="#999999", linewidth=0.5)
        axes.axvline(0, color="#999999", linewidth=0.5)
        axes.scatter(x, y, s=10, color=BLUE, alpha=0.6, linewidths=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.axes.set_xscale("symlog", linthresh=near)
            axis.axes.set_yscale("symlog", linthresh=near)
        edge = 1.5 * size
        ticks = [-size, -size / 30, 0, size / 30, size]
        names = [f"{tick:.1g}" for tick in ticks]
        axes.set_xlim(-edge, edge)
        axes.set_ylim(-edge, edge)
        axes.set_xticks(ticks, names, fontsize=SMALL)
        axes.set_yticks(ticks, names, fontsize=SMALL)
        axes.minorticks_off()
        axes.set_xlabel(x_label, fontsize=SMALL)
        axes.set_ylabel(label, fontsize=SMALL)
    save(figure, file)
