"""Heat maps of the radii of all tensors over the steps, side by side on one scale."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.common.figures import SMALL, WIDTH, save

NAMES = 50  # so many fit below each other
RANGE = 1e-4  # of the largest radius: below it all are one colour


class Observed(NamedTuple):
    """What a training has seen of its radii."""

    layers: Sequence[str]
    steps: Sequence[int]
    radii: Sequence[Sequence[float]]  # [step][layer]


def blocks(layers: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbours that belong together: a name, the first, and the one after the last. A block is what a number in the
    name counts; what stands before the first one is the stem, and after them the head. Where these have few tensors
    each, they are one block: "fuse 0-3"."""
    numbered = [re.search(r"(?:^|\.)(\w+)\.(\d+)\.", name) for name in layers]
    places = [place for place, match in enumerate(numbered) if match]
    found: list[tuple[str, int, int]] = []
    for place, match in enumerate(numbered):
        if match:
            name = f"{match[1].strip('_').removesuffix('s')} {match[2]}"
        else:
            name = "stem" if places and place < places[0] else "head"
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], place + 1)
        else:
            found.append((name, place, place + 1))
    return _together(found)


def _together(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Neighbours of one word whose names would lie on each other."""
    joined: list[tuple[str, int, int]] = []
    for _, of_word in groupby(found, key=lambda block: block[0].partition(" ")[0]):
        some = list(of_word)
        if len(some) > 1 and max(after - first for _, first, after in some) * NAMES < found[-1][2]:
            last = some[-1][0].partition(" ")[2]
            some = [(f"{some[0][0]}-{last}", some[0][1], some[-1][2])]
        joined += some
    return joined


def radii(file: Path, runs: Mapping[str, Observed], label: str) -> None:
    """A heat map for each run, beside each other; colours on a log scale that all share. All have the same tensors, or
    names are those of the first."""
    highest = _highest(runs)
    norm = LogNorm(RANGE * highest, highest)
    most = max(len(run.layers) for run in runs.values())
    figure = Figure(figsize=(WIDTH, min(7.5, 2 + 0.04 * most)), layout="constrained")
    all_axes = np.ravel(figure.subplots(1, len(runs), squeeze=False))
    for number, (axes, (name, run)) in enumerate(zip(all_axes, runs.items(), strict=True)):
        values = np.array(run.radii, dtype=float).T
        shown = np.where(np.isfinite(values), np.maximum(values, RANGE * highest), np.nan)
        axes.pcolormesh(
            run.steps, range(len(run.layers)), shown, norm=norm, shading="nearest", cmap="viridis", rasterized=True
        )
        axes.set_ylim(len(run.layers) - 0.5, -0.5)
        found = blocks(run.layers)
        for _, first, _ in found[1:]:
            axes.axhline(first - 0.5, color="white", linewidth=0.6)
        same = number and [b[0] for b in found] == [b[0] for b in blocks(next(iter(runs.values())).layers)]
        middles = [(first + after - 1) / 2 for _, first, after in found]
        axes.set_yticks(middles, [""] * len(found) if same else [name for name, _, _ in found])
        axes.tick_params(labelsize=SMALL, length=0, axis="y")
        axes.tick_params(labelsize=SMALL, axis="x")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
    bar = figure.colorbar(
        all_axes[0].collections[0], ax=list(all_axes), extend="min", location="top", aspect=40, shrink=0.8
    )
    bar.set_label(label, fontsize=10)
    bar.ax.tick_params(labelsize=SMALL)
    save(figure, file)


def caption(runs: Mapping[str, Observed]) -> str:
    """What there is to see."""
    lines = [
        "Radius of each tensor over the steps, from the input at the top to the head: a dark one is at the anchor, a "
        "bright one may go far from it. A radius shrinks where the loss falls toward the anchor, and grows where it "
        "falls away from it."
    ]
    lowest = RANGE * _highest(runs)
    for name, run in runs.items():
        low = [place for place, radius in enumerate(run.radii[-1]) if radius <= lowest]
        early = sum(place < len(run.layers) / 2 for place in low)
        lines.append(
            f"{name}: after the last step {len(low)} of {len(run.layers)} tensors are at the end of the scale or below "
            f"it, {early} of them in the first half."
        )
    return " ".join(lines)


def _highest(runs: Mapping[str, Observed]) -> float:
    values = np.concatenate([np.ravel(np.array(run.radii, dtype=float)) for run in runs.values()])
    return max(float(values[np.isfinite(values)].max(initial=0)), 1e-8)
