"""One training, by `hft.train` or, where weights of the examples are learned too, by `hft.bilevel`; what came out."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from experiments.common.examples import Examples, generator
from experiments.common.small_networks import accuracy, stretches
from experiments.meta.noise.config import BATCH, CLEAN_BATCH, CLEAN_SHARE, HIDDEN, MOMENTUM, NOISE, RAMP, Config
from experiments.meta.noise.data import Problem
from experiments.meta.noise.methods import (
    Batch,
    Method,
    Params,
    Seen,
    each_weights,
    logits,
    net_weights,
    network,
    smallest,
    weighted_by_net,
    weighted_each,
)

Loss = Callable[..., Tensor]  # of the network's weights, a batch and, where something is learned, what weighs
Looks = Iterator[tuple[int, Params, Any]]  # steps done, the network's weights, what weighs the examples


@dataclass
class Training:
    """What came out; accuracies are those after each stretch of steps."""

    params: Params
    own: Any  # what weighs the examples
    steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)  # seconds of the processor, without those of looking
    diverged: bool = False

    def seconds(self, looks: int) -> float:
        """Of a whole training, by its median stretch: the first of a process has much to set up."""
        return looks * median(self.stretches) if self.stretches else 0.0


def train(problem: Problem, method: Method, config: Config, lr: float, number: float, seed: int) -> Training:
    """Train for `config.steps` steps, and look at the accuracies `config.looks` times."""
    params, own = network(problem.noisy.x.shape[1], HIDDEN, problem.classes, generator("network", seed)), None
    optimizer, loss = hft.sgd(lr=lr, momentum=MOMENTUM), loss_of(problem, method, number)
    data = batches(problem, method, config.steps, seed)
    if method.start is None:
        stops = range(config.stretch, config.steps + 1, config.stretch)
        looks = ((step, params, None) for step, params in stretches(optimizer, loss, params, data, stops))
    else:
        own = method.start(len(problem.noisy.y), seed)
        looks = _bilevel(optimizer, loss, params, own, data, problem.clean, number, config.stretch)
    found, begin = Training(params, own), time.process_time()
    try:
        with warnings.catch_warnings():
            # Where all weights have come to 0 or 1, to rounding, no example can be weighed otherwise: a result.
            warnings.filterwarnings("ignore", "the hypergradient of 'loss' is exactly 0")
            for step, params, own in looks:
                found.stretches.append(time.process_time() - begin)
                if not all(bool(p.isfinite().all()) for p in params.values()):
                    raise FloatingPointError
                found.params, found.own = params, own
                found.steps.append(step)
                found.validation.append(accuracy(logits(params, problem.validation.x), problem.validation.y))
                found.test.append(accuracy(logits(params, problem.test.x), problem.test.y))
                begin = time.process_time()
    except FloatingPointError:
        found.diverged = True
    return found


def batches(problem: Problem, method: Method, steps: int, seed: int) -> list[Batch]:
    """Noisy examples pass by pass in random orders, clean ones drawn anew for each step."""
    drawn = generator("order", seed)
    places = torch.arange(len(problem.noisy.y))
    if method.noisy == "right":
        places = places[problem.right]
    count = -(-steps * BATCH // len(places))
    order = torch.cat([places[torch.randperm(len(places), generator=drawn)] for _ in range(count)])
    clean = torch.randint(len(problem.clean.y), (steps, CLEAN_BATCH), generator=drawn)
    dropped = [NOISE * min(1.0, step / (RAMP * steps)) for step in range(steps)]
    kept = [torch.tensor(round((1 - share) * BATCH)) for share in dropped]
    return [Batch(*step) for step in zip(order[: steps * BATCH].split(BATCH), clean, kept, strict=True)]


def loss_of(problem: Problem, method: Method, number: float) -> Loss:
    """(1 - CLEAN_SHARE) * the method's loss of the noisy examples + CLEAN_SHARE * the loss of the clean ones."""
    noisy, clean = problem.noisy, problem.clean

    def on_noisy(params: Params, batch: Batch, own: Any) -> Tensor:
        x, y = noisy.take(batch.noisy)
        return method.loss(Seen(logits(params, x), y, batch, number, own))

    def on_clean(params: Params, batch: Batch) -> Tensor:
        return mean_loss(params, clean.take(batch.clean))

    def loss(params: Params, batch: Batch, own: Any = None) -> Tensor:
        if method.noisy == "none":
            return on_clean(params, batch)
        if not method.clean:
            return on_noisy(params, batch, own)
        return (1 - CLEAN_SHARE) * on_noisy(params, batch, own) + CLEAN_SHARE * on_clean(params, batch)

    return loss


def mean_loss(params: Params, examples: Examples) -> Tensor:
    return F.cross_entropy(logits(params, examples.x), examples.y)


def _bilevel(
    optimizer: hft.Optimizer, loss: Loss, params: Params, own: Any, data: list[Batch], clean: Examples, lr: float,
    stretch: int,
) -> Looks:  # fmt: skip
    """After every step, what weighs the examples moves along d loss of the whole clean set / d own."""
    records = hft.bilevel(
        optimizer, hft.adam(lr=lr), "loss", loss, mean_loss, params, data, [clean], inner_steps=1,
        outer_steps=len(data), hparams={**optimizer.hparams, "loss": own},
    )  # fmt: skip
    for record in records:
        if record.step % stretch == 0:
            yield record.step, record.state.params, record.tuned["loss"]


def told_apart(problem: Problem, method: Method, found: Training) -> dict[str, Any] | None:
    """Mean weights of the noisy examples, by the network and by what weighs them at the end; None where all count the
    same. Weights are relative to the mean of all: since a loss is divided by their sum, nothing else of them counts."""
    losses = F.cross_entropy(logits(found.params, problem.noisy.x), problem.noisy.y, reduction="none")
    if method.loss is smallest:
        kept = torch.zeros_like(losses)
        kept[losses.topk(round((1 - NOISE) * len(losses)), largest=False).indices] = 1
        own, score = kept, -losses
    elif method.loss is weighted_by_net:
        own = score = net_weights(found.own, losses)
    elif method.loss is weighted_each:
        own = score = each_weights(found.own)
    else:
        return None
    relative = own / own.mean().clamp(min=1e-8)
    return {
        "auc": round(auc(score[problem.right], score[~problem.right]), 4),
        "right": {"mean": round(float(relative[problem.right].mean()), 4)},
        "wrong": {"mean": round(float(relative[~problem.right].mean()), 4)},
    }


def auc(right: Tensor, wrong: Tensor) -> float:
    """The chance that of a right and a wrong one the right one has the larger score; equal scores count half."""
    wrong = wrong.sort().values
    below, not_above = (torch.searchsorted(wrong, right, right=side) for side in (False, True))
    return float((below + not_above).double().mean()) / (2 * len(wrong))
