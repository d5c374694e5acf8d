"""The towers, their training from all first learning rates and with all seeds at once, and what a step costs."""

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import Params
from experiments.tuning.towers.config import BATCH_SIZE, HYPER_LR, HYPER_RATIO, TIMED_STEPS, Base, Config, Way
from experiments.tuning.towers.tasks import Task
from hyperopt_ftp import tree
from hyperopt_ftp.types import Constraint

LOG: dict[str, Constraint] = {"lr": "log"}
KINDS = {"sgd": hft.sgd, "adam": hft.adam}
MEASURED = 2048  # at most so many examples are what a loss is measured on


def tower(base: Base, height: int, way: Way) -> hft.Optimizer:
    """`base` with `height` optimizers above it, each of which tunes the learning rate of the one below.

    "log": all are Adam and move the logarithm; their own learning rates are fixed numbers, each smaller than the one
    below.

    "raw": as in arXiv 1909.13371: all are of the base's kind, move the learning rate itself, and begin with that of the
    base, which `first_hparams` sets.
    """
    levels = [KINDS[base]()]
    for k in range(height):
        levels.append(hft.adam(lr=HYPER_LR * HYPER_RATIO**k) if way == "log" else KINDS[base]())
    built = levels.pop()
    while levels:
        built = hft.hyper(levels.pop(), by=built, over="lr", constrain=LOG if way == "log" else None)
    return built


def first_hparams(hparams: dict[str, Any], lr: Tensor, way: Way) -> dict[str, Any]:
    """A tower's hparams with another first learning rate of its base, in the raw way of all its levels."""
    if "by" not in hparams:
        return {**hparams, "lr": lr}
    above = hparams["by"] if way == "log" else first_hparams(hparams["by"], lr, way)
    return {"base": {**hparams["base"], "lr": lr}, "by": above}


class Drawn(NamedTuple):
    """All that a seed decides."""

    params: Params
    batches: list[Examples]
    train: Examples
    held_out: Examples


class Ends(NamedTuple):
    """Of a training."""

    start: Tensor  # training loss before it
    train: Tensor  # and after it
    held_out: Tensor


def draw(task: Task, seed: int, steps: int) -> Drawn:
    """First weights, batches with replacement, and the examples that losses are measured on."""
    parts = task.parts(seed)
    train, held_out = parts["train"], parts["held_out"]
    g = torch.Generator().manual_seed(seed)

    def measured(part: Examples) -> Examples:
        return part.take(torch.randperm(len(part.y), generator=g)[:MEASURED])

    batches = [train.take(torch.randint(len(train.y), (BATCH_SIZE,), generator=g)) for _ in range(steps)]
    return Drawn(task.network(seed), batches, measured(train), measured(held_out))


def train(task: Task, base: Base, height: int, way: Way, drawn: Drawn, lr: Tensor) -> Ends:
    """From one first learning rate."""
    optimizer = tower(base, height, way)
    hparams = first_hparams(optimizer.hparams, lr, way)
    run = hft.train(optimizer, task.loss, drawn.params, drawn.batches, hparams=hparams)
    return Ends(
        start=task.loss(drawn.params, drawn.train),
        train=task.loss(run.params, drawn.train),
        held_out=task.loss(run.params, drawn.held_out),
    )


def train_all(task: Task, base: Base, height: int, way: Way, config: Config) -> dict[str, Any]:
    """By seed and learning rate, as a record keeps it. Nothing is changed in place, so that one `vmap` trains them
    all."""
    each = [draw(task, seed, config.steps) for seed in config.seeds]
    drawn = tree.map_tree(lambda *same: torch.stack(same), *each)
    lrs = torch.tensor(config.lrs, dtype=torch.float64)

    def one(drawn: Drawn, lr: Tensor) -> Ends:
        return train(task, base, height, way, drawn, lr)

    with torch.no_grad():
        ends = torch.func.vmap(torch.func.vmap(one, (None, 0)), (0, None))(drawn, lrs)
    return {name: plain(value) for name, value in ends._asdict().items()}


def plain(value: Tensor) -> Any:
    """Numbers as JSON has them; None for what is not finite."""
    if value.ndim:
        return [plain(part) for part in value]
    return float(f"{value.item():.6g}") if value.isfinite() else None


def seconds_of_a_step(task: Task, base: Base, config: Config) -> dict[str, float]:
    """By way and height: the median over rounds, in each of which all train once, one after the other."""
    drawn = draw(task, config.seeds[0], TIMED_STEPS)
    towers = {
        f"{way}-{height}" if height else "0": tower(base, height, way)
        for way in config.ways
        for height in config.heights
    }
    took: dict[str, list[float]] = {name: [] for name in towers}
    for number in range(config.rounds + 1):
        for name, optimizer in towers.items():
            begin = time.perf_counter()
            with torch.no_grad():
                hft.train(optimizer, task.loss, drawn.params, drawn.batches)
            if number:  # the first round warms up
                took[name].append((time.perf_counter() - begin) / TIMED_STEPS)
    return {name: statistics.median(seconds) for name, seconds in took.items()}
