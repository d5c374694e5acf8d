"""Problems on 1,797 hand-written digits."""

import functools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples, flipped, split
from experiments.common.small_networks import Params, cross_entropy, mlp, mlp_params, passes
from experiments.tuning.search.problem import ADAM, LR, Box, Knob, Problem, Values, as_it_is, one

SIZES = {"train": 1000, "validation": 300, "test": 497}
FLIPPED = 0.3  # part of the training labels that are wrong, where examples have weights
LAYERS = (64, 64, 10)


def learning_rate(examples: Examples, seed: int) -> Problem:
    return _plain(examples, seed, hft.sgd(momentum=0.9), LR, as_it_is(LR), steps=100)


def adam(examples: Examples, seed: int) -> Problem:
    return _plain(examples, seed, hft.adamw(), ADAM, as_it_is(ADAM), steps=100)


def whole_schedule(examples: Examples, seed: int) -> Problem:
    """A learning rate for each step; as few numbers, warm-up and cosine."""
    steps = 64

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        return {"lr": warm_up_and_cosine(numbers["peak"], numbers["warm-up"], steps)}

    knobs = {"peak": one(0.1, 1e-3, 10.0), "warm-up": one(0.1, 0.02, 0.6, "logit")}
    default = expand({name: knob.default for name, knob in knobs.items()})["lr"]
    few = Box(knobs, expand, "the peak of a cosine and the share of warm-up before it")
    optimizer = hft.per_step(hft.sgd(momentum=0.9), lr=default)
    return _plain(examples, seed, optimizer, {"lr": Knob(default, 1e-4, 10.0)}, few, steps)


def warm_up_and_cosine(peak: Tensor, share: Tensor, steps: int) -> Tensor:
    """A learning rate for each step, above 0 throughout: linear to `peak` over a share of the steps, then a cosine."""
    at = (torch.arange(steps) + 0.5) / steps
    falling = (1 + torch.cos(math.pi * (at - share) / (1 - share))) / 2
    return peak * torch.where(at < share, at / share, falling)


def _plain(
    examples: Examples, seed: int, optimizer: hft.Optimizer, space: dict[str, Knob], few: Box, steps: int
) -> Problem:
    parts, generator = split(examples, SIZES, seed), torch.Generator().manual_seed(seed)
    batches = [tuple(parts["train"].take(index)) for index in passes(SIZES["train"], steps, 50, generator)]
    return Problem(
        optimizer, cross_entropy(mlp), mlp, mlp_params(LAYERS, generator), batches, parts["validation"],
        parts["test"], space, few, seed=seed,
    )  # fmt: skip


def example_weights(examples: Examples, seed: int) -> Problem:
    """A weight in (0, 1) for each training example, some of whose labels are wrong; validation and test are clean."""
    parts, generator = split(examples, SIZES, seed), torch.Generator().manual_seed(seed)
    x, clean = parts["train"]
    y = flipped(clean, 10, FLIPPED, generator)
    batches = [(x[index], y[index], index) for index in passes(len(y), 200, 100, generator)]
    space = {"loss.weight": Knob(torch.full((len(y),), 0.5), 0.01, 0.99, "logit")}
    problem: Problem

    @functools.cache
    def losses() -> Tensor:
        """Of each example, after a training by the default: the first that a search has to do."""
        return F.cross_entropy(mlp(problem.train(problem.default).params, x), y, reduction="none")

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        dropped = losses() > losses().quantile(1 - numbers["dropped"])
        return {"loss.weight": torch.where(dropped, 0.01, 0.99)}

    about = "the part of the examples, those of the largest loss after a first training, that is left out"
    few = Box({"dropped": one(0.1, 0.02, 0.7, "logit")}, expand, about)
    problem = Problem(
        hft.sgd(lr=0.1, momentum=0.9), weighted, mlp, mlp_params(LAYERS, generator),
        batches, parts["validation"], parts["test"], space, few, own={"weight": space["loss.weight"].default},
        seed=seed,
    )  # fmt: skip
    return problem


def weighted(params: Params, batch: tuple[Tensor, Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    """The mean by weight: what all weights have in common does not matter."""
    x, y, index = batch
    weight = h["weight"][index]
    return (weight * F.cross_entropy(mlp(params, x), y, reduction="none")).sum() / weight.sum()
