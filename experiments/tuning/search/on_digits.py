"""Problems on 1,797 hand-written digits."""

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples, split
from experiments.tuning.search.networks import cross_entropy, logits, order, weights
from experiments.tuning.search.problem import Box, Knob, Params, Problem, Values, as_it_is
from experiments.tuning.search.spaces import ADAM, LR, one, schedule

SIZES = {"train": 1000, "validation": 300, "test": 497}
FLIPPED = 0.3  # part of the training labels that are wrong, where examples have weights


def learning_rate(examples: Examples, seed: int) -> Problem:
    return _plain("digits, learning rate", examples, seed, hft.sgd(momentum=0.9), LR, as_it_is(LR), steps=100)


def adam(examples: Examples, seed: int) -> Problem:
    return _plain("digits, Adam's five", examples, seed, hft.adamw(), ADAM, as_it_is(ADAM), steps=100)


def whole_schedule(examples: Examples, seed: int) -> Problem:
    space, few = schedule(steps=64)
    optimizer = hft.per_step(hft.sgd(momentum=0.9), lr=space["lr"].default)
    return _plain("digits, schedule", examples, seed, optimizer, space, few, steps=64)


def _plain(
    name: str, examples: Examples, seed: int, optimizer: hft.Optimizer, space: dict[str, Knob], few: Box, steps: int
) -> Problem:
    parts, generator = split(examples, SIZES, seed), torch.Generator().manual_seed(seed)
    chosen = order(SIZES["train"], steps, 50, generator)
    return Problem(
        name, optimizer, cross_entropy, logits, weights((64, 64, 10), generator),
        [tuple(parts["train"].take(index)) for index in chosen], parts["validation"], parts["test"], space, few,
        seed=seed,
    )  # fmt: skip


def example_weights(examples: Examples, seed: int) -> Problem:
    """A weight in (0, 1) for each training example, some of whose labels are wrong; validation and test are clean."""
    parts, generator = split(examples, SIZES, seed), torch.Generator().manual_seed(seed)
    x, clean = parts["train"]
    y = flipped(clean, FLIPPED, 10, generator)
    batches = [(x[index], y[index], index) for index in order(len(y), 200, 100, generator)]
    space = {"loss.weight": Knob(torch.full((len(y),), 0.5), 0.01, 0.99, "logit")}
    problem: Problem

    @functools.cache
    def losses() -> Tensor:
        """Of each example, after a training by the default: the first that a search has to do."""
        return F.cross_entropy(logits(problem.train(problem.default).params, x), y, reduction="none")

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        dropped = losses() > losses().quantile(1 - numbers["dropped"])
        return {"loss.weight": torch.where(dropped, 0.01, 0.99)}

    about = "the part of the examples, those of the largest loss after a first training, that is left out"
    few = Box({"dropped": one(0.1, 0.02, 0.7, "logit")}, expand, about)
    problem = Problem(
        "digits, example weights", hft.sgd(lr=0.1, momentum=0.9), weighted, logits, weights((64, 64, 10), generator),
        batches, parts["validation"], parts["test"], space, few, own={"weight": space["loss.weight"].default},
        seed=seed,
    )  # fmt: skip
    return problem


def flipped(labels: Tensor, part: float, classes: int, generator: torch.Generator) -> Tensor:
    """A part of the labels replaced by other ones."""
    chosen = torch.randperm(len(labels), generator=generator)[: round(part * len(labels))]
    away = torch.randint(1, classes, (len(chosen),), generator=generator)
    return labels.index_put((chosen,), (labels[chosen] + away) % classes)


def weighted(params: Params, batch: tuple[Tensor, Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    """The mean by weight: what all weights have in common does not matter."""
    x, y, index = batch
    weight = h["weight"][index]
    return (weight * F.cross_entropy(logits(params, x), y, reduction="none")).sum() / weight.sum()
