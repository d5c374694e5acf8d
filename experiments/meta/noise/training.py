"""One training: `hft.train` where the network alone is learned, `hft.bilevel` where weights of the examples are too."""

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
from experiments.common.draws import generator
from experiments.common.examples import Examples
from experiments.meta.noise.config import Config
from experiments.meta.noise.data import Problem
from experiments.meta.noise.methods import Batch, Method, Seen
from experiments.meta.noise.network import Params, logits, network

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
    params, own = network(problem.noisy.x.shape[1], config.hidden, problem.classes, generator("network", seed)), None
    optimizer, loss = hft.sgd(lr=lr, momentum=config.momentum), loss_of(problem, method, config, number)
    data = batches(problem, method, config, seed)
    if method.start is None:
        looks = _train(optimizer, loss, params, data, config)
    else:
        own = method.start(len(problem.noisy.y), seed)
        looks = _bilevel(optimizer, loss, params, own, data, problem.clean, number, config)
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
                found.validation.append(accuracy(params, problem.validation))
                found.test.append(accuracy(params, problem.test))
                begin = time.process_time()
    except FloatingPointError:
        found.diverged = True
    return found


def batches(problem: Problem, method: Method, config: Config, seed: int) -> list[Batch]:
    """Noisy examples pass by pass in random orders, clean ones drawn anew for each step."""
    drawn = generator("order", seed)
    places = torch.arange(len(problem.noisy.y))
    if method.noisy == "right":
        places = places[problem.right]
    passes = -(-config.steps * config.batch // len(places))
    order = torch.cat([places[torch.randperm(len(places), generator=drawn)] for _ in range(passes)])
    clean = torch.randint(len(problem.clean.y), (config.steps, config.clean_batch), generator=drawn)
    made = []
    for step in range(config.steps):
        dropped = config.noise * min(1.0, step / (config.ramp * config.steps))
        kept = torch.tensor(round((1 - dropped) * config.batch))
        made.append(Batch(order[step * config.batch : (step + 1) * config.batch], clean[step], kept))
    return made


def loss_of(problem: Problem, method: Method, config: Config, number: float) -> Loss:
    """(1 - clean_share) * the method's loss of the noisy examples + clean_share * the loss of the clean ones."""
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
        share = config.clean_share
        return (1 - share) * on_noisy(params, batch, own) + share * on_clean(params, batch)

    return loss


def _train(optimizer: hft.Optimizer, loss: Loss, params: Params, data: list[Batch], config: Config) -> Looks:
    state = None
    for step in range(config.stretch, config.steps + 1, config.stretch):
        run = hft.train(optimizer, loss, params, data[step - config.stretch : step], state=state)
        params, state = run.params, run.state
        yield step, params, None


def _bilevel(
    optimizer: hft.Optimizer, loss: Loss, params: Params, own: Any, data: list[Batch], clean: Examples, lr: float,
    config: Config,
) -> Looks:  # fmt: skip
    """After every `inner_steps` steps, what weighs the examples moves along d loss of the whole clean set / d own."""
    records = hft.bilevel(
        optimizer, hft.adam(lr=lr), "loss", loss, mean_loss, params, data, [clean], inner_steps=config.inner_steps,
        outer_steps=config.steps // config.inner_steps, hparams={**optimizer.hparams, "loss": own},
    )  # fmt: skip
    for record in records:
        step = record.step * config.inner_steps
        if step % config.stretch == 0:
            yield step, record.state.params, record.tuned["loss"]


def mean_loss(params: Params, examples: Examples) -> Tensor:
    return F.cross_entropy(logits(params, examples.x), examples.y)


def accuracy(params: Params, examples: Examples) -> float:
    """In %."""
    return 100 * float((logits(params, examples.x).argmax(1) == examples.y).double().mean())
