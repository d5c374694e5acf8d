"""Training from all first learning rates and with all seeds at once, and what a step costs by itself."""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.tuning.towers.config import Base, Config, Way
from experiments.tuning.towers.levels import first_hparams, tower
from experiments.tuning.towers.tasks import Params, Task
from hyperopt_ftp import tree

MEASURED = 2048  # at most so many examples are what a loss is measured on


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
    lr: Tensor  # the base's learning rate in the last step


def draw(task: Task, seed: int, steps: int, batch_size: int) -> Drawn:
    """First weights, batches with replacement, and the examples that losses are measured on."""
    parts = task.parts(seed)
    train, held_out = parts["train"], parts["held_out"]
    g = torch.Generator().manual_seed(seed)

    def measured(part: Examples) -> Examples:
        return part.take(torch.randperm(len(part.y), generator=g)[:MEASURED])

    batches = [train.take(torch.randint(len(train.y), (batch_size,), generator=g)) for _ in range(steps)]
    return Drawn(task.network(seed), batches, measured(train), measured(held_out))


def stacked(drawn: Sequence[Drawn]) -> Drawn:
    """One whose tensors have a first dimension: the seeds."""
    return tree.map_tree(lambda *same: torch.stack(same), *drawn)


def train(task: Task, base: Base, height: int, way: Way, config: Config, drawn: Drawn, lr: Tensor) -> Ends:
    """From one first learning rate."""
    optimizer = tower(base, height, way, config)
    hparams = first_hparams(optimizer.hparams, lr, way)
    run = hft.train(optimizer, task.loss, drawn.params, drawn.batches, hparams=hparams)
    return Ends(
        start=task.loss(drawn.params, drawn.train),
        train=task.loss(run.params, drawn.train),
        held_out=task.loss(run.params, drawn.held_out),
        lr=run.state.tuned["lr"] if height else lr,
    )


def train_all(task: Task, base: Base, height: int, way: Way, config: Config) -> Ends:
    """[seeds, learning rates] of everything. Nothing is changed in place, so that one `vmap` trains them all."""
    drawn = stacked([draw(task, seed, config.steps, config.batch_size) for seed in config.seeds])
    lrs = torch.tensor(config.lrs, dtype=torch.float64)

    def one(drawn: Drawn, lr: Tensor) -> Ends:
        return train(task, base, height, way, config, drawn, lr)

    with torch.no_grad():
        return torch.func.vmap(torch.func.vmap(one, (None, 0)), (0, None))(drawn, lrs)


def as_json(ends: Ends) -> dict[str, Any]:
    """By seed and learning rate; None for what is not finite."""
    return {name: _plain(value) for name, value in ends._asdict().items()}


def _plain(value: Tensor) -> Any:
    if value.ndim:
        return [_plain(part) for part in value]
    return float(f"{value.item():.6g}") if value.isfinite() else None


def seconds_of_a_step(task: Task, base: Base, config: Config) -> dict[str, float]:
    """By way and height: the median over rounds, in each of which all train once, one after the other."""
    drawn = draw(task, config.seeds[0], config.timed_steps, config.batch_size)
    towers = {
        f"{way}-{height}" if height else "0": tower(base, height, way, config)
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
                took[name].append((time.perf_counter() - begin) / config.timed_steps)
    return {name: statistics.median(seconds) for name, seconds in took.items()}
