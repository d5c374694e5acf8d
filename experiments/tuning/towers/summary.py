"""What the trainings of a run amount to: by task, base, way and height."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any

from experiments.common.estimate import estimate

Losses = Sequence[Sequence[float]]  # by seed, by first learning rate; infinite where a training diverged
QUANTITIES = ("train", "held_out", "lr")


def piece(task: str, base: str, way: str, height: int) -> str:
    """The name of a piece; without a tower there are no two ways."""
    return f"{task}-{base}-{way}-{height}" if height else f"{task}-{base}-0"


def losses(result: dict, quantity: str) -> list[list[float]]:
    """As kept, but infinite where they were not finite."""
    return [[math.inf if value is None else value for value in row] for row in result[quantity]]


def limit(start: float, best: float, within: float) -> float:
    """The loss that counts as good: of the fall from `start` to `best`, a share `within` may be missing."""
    return best + within * (start - best)


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
    lrs = content["data"]["lrs"]
    found: dict[str, Any] = {}
    for task in config["tasks"]:
        for base in config["bases"]:
            alone = results[piece(task, base, "", 0)]
            train = losses(alone, "train")
            place = best_place(train)
            starts = [row[0] for row in losses(alone, "start")]
            goods = [
                [limit(start, row[place], share) for start, row in zip(starts, train, strict=True)]
                for share in config["within"]
            ]
            ways = {
                way: {
                    str(height): _reached(results[piece(task, base, way, height)], goods, config["per_decade"])
                    for height in config["heights"]
                }
                for way in config["ways"]
            }
            found[f"{task}, {base}"] = {
                "task": task,
                "base": base,
                "start": mean(starts),
                "lr": lrs[place],
                "at_edge": place in (0, len(lrs) - 1),
                "good": [mean(of_seeds) for of_seeds in goods],
                "ways": ways,
                "seconds": results.get(f"{task}-{base}-seconds"),
            }
    return found


def _reached(result: dict, goods: Sequence[Sequence[float]], per_decade: int) -> dict[str, Any]:
    train, held_out = losses(result, "train"), losses(result, "held_out")
    place = best_place(train)  # the held-out loss chooses nothing
    return {
        "decades": [
            estimate([decades(row, good, per_decade) for row, good in zip(train, of_seeds, strict=True)])
            for of_seeds in goods
        ],
        "train": estimate([row[place] for row in train]),
        "held_out": estimate([row[place] for row in held_out]),
        "bands": {name: band(losses(result, name)) for name in QUANTITIES},
    }
