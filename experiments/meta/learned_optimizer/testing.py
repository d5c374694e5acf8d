"""What an optimizer does on a test problem: its curve, and the time that a step takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.small_networks import Params, cross_entropy, stretches
from experiments.meta.learned_optimizer.config import POINTS
from experiments.meta.learned_optimizer.problems import PROBLEMS, Parts, batches
from experiments.meta.learned_optimizer.tasks import BATCH

WORST = 100.0  # a training that is above it, or not finite, has diverged: there it counts as this
HELD_BACK = 10_000  # added to a seed: the weights and order on which nothing else is chosen

Make = Callable[[float, int], hft.Optimizer]  # from the learning rate and the number of steps


#: With a cosine, which falls to zero, Adam knows how long it trains; the learned rule does not.
MAKERS: dict[str, Make] = {
    "adam": lambda rate, steps: hft.adam(lr=rate),
    "momentum": lambda rate, steps: hft.sgd(lr=rate, momentum=0.9),
    "cosine": lambda rate, steps: hft.scheduled(hft.adam(lr=rate), lr=hft.schedules.cosine(steps)),
}
DEFAULT = 1e-3  # Adam's
# Each twice the one before. Those in the middle are near what is best for small networks.
GRIDS = {
    "adam": [DEFAULT * 2.0**k for k in range(-1, 8)],
    "momentum": [0.008 * 2.0**k for k in range(9)],
    "cosine": [DEFAULT * 2.0**k for k in range(-1, 8)],
}


@torch.no_grad()
def curves(
    name: str, parts: Parts, optimizer: hft.Optimizer, seed: int, steps: int, rates: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Training losses (rates, POINTS + 1) and accuracies in % on the test part after the last step (rates,).

    The rates train together by vmap, from the same weights on the same batches; without rates there is one row.
    """
    problem = PROBLEMS[name]
    train, test = parts.train[problem.of], parts.test[problem.of]
    generator = torch.Generator().manual_seed(HELD_BACK + seed)
    start, loss = problem.start(generator), cross_entropy(problem.forward)
    order, every = batches(train, BATCH, steps, generator), steps // POINTS

    def one(rate: Tensor | None) -> tuple[Tensor, Tensor]:
        hparams = optimizer.hparams if rate is None else {**optimizer.hparams, "lr": rate}
        params, losses = start, []
        for _, params in stretches(optimizer, loss, start, order, range(0, steps + 1, every), hparams):
            losses.append(loss(params, train))
        right = problem.forward(params, test.x).argmax(-1) == test.y
        return torch.stack(losses), 100 * right.float().mean()

    if rates is None:
        losses, accuracy = (found[None] for found in one(None))
    else:
        losses, accuracy = torch.func.vmap(one)(torch.tensor(rates, dtype=torch.float64))
    return losses.nan_to_num(WORST, WORST).clamp(max=WORST), accuracy


@torch.no_grad()
def seconds_a_step(
    name: str, parts: Parts, optimizers: Mapping[str, hft.Optimizer], steps: int = 30
) -> dict[str, float]:
    """Medians over the steps of single trainings, gradients included; a step of each in turn."""
    problem = PROBLEMS[name]
    generator, loss = torch.Generator().manual_seed(HELD_BACK), cross_entropy(problem.forward)
    start: Params = problem.start(generator)
    now: dict[str, tuple[Params, Any]] = dict.fromkeys(optimizers, (start, None))
    times: dict[str, list[float]] = {kind: [] for kind in optimizers}
    for batch in batches(parts.train[problem.of], BATCH, steps, generator):
        for kind, optimizer in optimizers.items():
            begin = time.process_time()
            params, state, _ = hft.train(optimizer, loss, now[kind][0], [batch], state=now[kind][1])
            times[kind].append(time.process_time() - begin)
            now[kind] = params, state
    return {kind: median(taken) for kind, taken in times.items()}
