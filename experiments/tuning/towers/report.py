"""From the trainings to report.md and its figure: by task, base, way and height."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.estimate import estimate
from experiments.common.figures import SMALL, WIDTH, legend, save
from experiments.common.looks import looks
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, significant, write
from experiments.tuning.towers.config import HIGHEST_LR, HYPER_LR, HYPER_RATIO, LOWEST_LR, TIMED_STEPS, WITHIN

TITLES = {"log": "logarithm, Adam above", "raw": "raw values, same kind above"}
Losses = Sequence[Sequence[float]]  # by seed, by first learning rate; infinite where a training diverged


def piece(task: str, base: str, way: str, height: int) -> str:
    """The name of a piece; without a tower there are no two ways."""
    return f"{task}-{base}-{way}-{height}" if height else f"{task}-{base}-0"


def losses(result: dict, quantity: str) -> list[list[float]]:
    """As kept, but infinite where they were not finite."""
    return [[math.inf if value is None else value for value in row] for row in result[quantity]]


def decades(values: Sequence[float], good: float, per_decade: int) -> float:
    """Between neighbouring learning rates which both end at `good` or below.

    >>> decades([9.0, 1.0, 1.0, 9.0, 1.0], good=2.0, per_decade=2)
    0.5
    """
    fine = [value <= good for value in values]
    return sum(a and b for a, b in pairwise(fine)) / per_decade


def best_place(values: Losses) -> int:
    """Of the lowest mean over seeds."""
    means = [mean(column) for column in zip(*values, strict=True)]
    return means.index(min(means))


def band(values: Losses) -> list[list[float | None]]:
    """By learning rate: the lowest, the median and the highest of the seeds; None: not finite."""
    rows = [(min(column), median(column), max(column)) for column in zip(*values, strict=True)]
    return [[value if math.isfinite(value) else None for value in row] for row in rows]


def summarise(content: dict) -> dict[str, Any]:
    """By "task, base": the base alone, and by way and height what a tower reaches and costs."""
    config, results = content["config"], content["results"]
    found: dict[str, Any] = {}
    for task in config["tasks"]:
        for base in config["bases"]:
            alone = results[piece(task, base, "", 0)]
            train = losses(alone, "train")
            place = best_place(train)
            starts = [row[0] for row in losses(alone, "start")]
            falls = [(start, row[place]) for start, row in zip(starts, train, strict=True)]
            # A loss counts as good where of the base's fall a share may be missing.
            goods = [[best + share * (start - best) for start, best in falls] for share in WITHIN]
            found[f"{task}, {base}"] = {
                "start": mean(starts),
                "good": mean(goods[0]),
                "ways": {
                    way: {
                        str(height): _reached(results[piece(task, base, way, height)], goods, config["per_decade"])
                        for height in config["heights"]
                    }
                    for way in config["ways"]
                },
                "seconds": results[f"{task}-{base}-seconds"],
            }
    return found


def _reached(result: dict, goods: Sequence[Sequence[float]], per_decade: int) -> dict[str, Any]:
    train = losses(result, "train")
    place = best_place(train)  # the held-out loss chooses nothing
    return {
        "decades": [
            estimate([decades(row, good, per_decade) for row, good in zip(train, of_seeds, strict=True)])
            for of_seeds in goods
        ],
        "train": estimate([row[place] for row in train]),
        "held_out": estimate([row[place] for row in losses(result, "held_out")]),
        "band": band(train),
    }


def table(content: dict) -> Table:
    """A row for each base alone and for each tower above it."""
    good = [f"decades of {HIGHEST_LR - LOWEST_LR} within {100 * share:g} %" for share in WITHIN]
    header = ["task, base", "way", "height", *good, "training loss", "held-out loss", "ms a step, times the base"]
    rows = []
    for name, found in content["summary"].items():
        for way, towers in found["ways"].items():
            for height, one in towers.items():
                if height != "0" or way == content["config"]["ways"][0]:
                    cells = [significant(value) for value in (*one["decades"], one["train"], one["held_out"])]
                    own = found["seconds"][height if height == "0" else f"{way}-{height}"]
                    cost = f"{1000 * own:.2f}, {own / found['seconds']['0']:.1f}x"
                    rows.append([name, way if height != "0" else "", height, *cells, cost])
    return header, rows


def sensitivity(file: Path, summary: Mapping, lrs: Sequence[float]) -> None:
    """Training loss at the end over the first learning rate, a row of panels for each task and base, a panel for each
    way: medians over the seeds, and a band from the lowest to the highest.

    What is not finite or far above the loss before training is a cross at the upper end.
    """
    ways = list(next(iter(summary.values()))["ways"])
    figure = Figure(figsize=(WIDTH, 1.2 + 2.1 * len(summary)), layout="constrained")
    grid = figure.subplots(len(summary), len(ways), squeeze=False, sharex=True, sharey="row")
    drawn: dict = {}
    for row, (name, found) in enumerate(summary.items()):
        for column, way in enumerate(ways):
            axes = grid[row, column]
            _panel(axes, found, way, lrs, drawn)
            axes.set_title(f"{name}:\n{TITLES[way]}", fontsize=10)
    figure.supxlabel("first learning rate", fontsize=10)
    figure.supylabel("training loss at the end", fontsize=10)
    legend(figure, drawn.values(), list(drawn))
    save(figure, file)


def _panel(axes: Axes, found: Mapping, way: str, lrs: Sequence[float], drawn: dict) -> None:
    axes.set_xscale("log")
    rows = {height: np.array(one["band"], dtype=float) for height, one in found["ways"][way].items()}
    low, high = _ends(found)
    axes.set_yscale("log" if high / low > 20 else "linear")
    drawn["loss before training"] = axes.axhline(found["start"], color="#bbbbbb", linewidth=0.8, linestyle=":")
    drawn["counts as good below"] = axes.axhline(found["good"], color="#777777", linewidth=0.8, linestyle="--")
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


def _ends(found: Mapping) -> tuple[float, float]:
    """Of the axis, the same in all ways."""
    every = [np.array(one["band"], dtype=float) for way in found["ways"].values() for one in way.values()]
    start, lowest = found["start"], min(float(np.nanmin(values)) for values in every)
    if start / lowest > 20:
        return lowest / 1.5, 3 * start
    return lowest - 0.08 * (start - lowest), start + 0.3 * (start - lowest)


def write_report(record: RunRecord) -> None:
    content, config = record.content, record.content["config"]
    summary = content["summary"] = summarise(content)
    lrs, several = content["data"]["lrs"], len(config["seeds"]) > 1
    sensitivity(record.folder / "training-loss.png", summary, lrs)
    ways = {
        "log": "Way log: every level above is Adam and moves the logarithm; the one above the base has learning rate "
        f"{HYPER_LR:g}, each further one {HYPER_RATIO:g} times that of the one below it, in all tasks and from "
        "everywhere.",
        "raw": "Way raw (arXiv 1909.13371, here of the learning rate alone, which is held at 0 or above): every level "
        "is of the base's kind, moves the learning rate itself, and begins with the first learning rate of the base.",
    }
    explained = [
        "Decades within a share: those between neighbouring first learning rates which both end with a training loss "
        "of which at most this share is missing of the fall that the base alone reaches from its best one.",
        "The losses of a row are those from its own best first learning rate, by training loss; held-out examples "
        "choose nothing.",
        f"Mean ± standard error over {len(config['seeds'])} seeds (split, first weights, order)." if several else "",
        "Milliseconds (and how many times those of the base alone) are of one training by itself: medians of "
        f"{config['rounds']} timings of {TIMED_STEPS} steps, all towers in turns.",
        "In the figure lines are medians over the seeds, bands go from the lowest to the highest." if several else "",
        "A cross at the upper end stands for a training that diverged or ended above the loss before it.",
    ]
    write(
        record,
        "Towers of optimizers over the first learning rate",
        f"A base trains for {config['steps']} steps from each of {len(lrs)} first learning rates, 10^{LOWEST_LR} to "
        f"10^{HIGHEST_LR}. A tower of height n has n optimizers above the base; each tunes the learning rate of the "
        "one below it while training, by one-step hypergradients.",
        bullets(
            [
                *(ways[way] for way in config["ways"]),
                *(f"Task {name}: {about}." for name, about in content["data"]["tasks"].items()),
            ]
        ),
        table(content),
        " ".join(filter(None, explained)),
        "![Training loss at the end, over the first learning rate: the flatter a line, the less the first learning "
        "rate matters](training-loss.png)",
    )
