"""Problems on the sentiment of tweets, read as bags of words."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import Params, cross_entropy, mlp, mlp_params, passes
from experiments.common.tweets import Tweets, bags
from experiments.tuning.search.problem import ADAM, LR, Box, Knob, Problem, as_it_is, one

SIZES = {"train": 1000, "validation": 1000, "test": 2000}
MORE = 2000  # tweets to train on, in a problem beside
WORDS, MANY_WORDS = 2000, 10_000
CLASSES = 3


def learning_rate(tweets: Tweets, seed: int) -> Problem:
    """Of a logistic regression."""
    parts, sgd = parts_of(tweets, WORDS, seed), hft.sgd(momentum=0.9)
    return _problem(parts, seed, sgd, nothing(WORDS), LR, as_it_is(LR))


def adam(tweets: Tweets, seed: int) -> Problem:
    """Of a network with 32 hidden units."""
    parts, generator = parts_of(tweets, WORDS, seed), torch.Generator().manual_seed(seed)
    start = mlp_params((WORDS, 32, CLASSES), generator)
    return _problem(parts, seed, hft.adamw(), start, ADAM, as_it_is(ADAM), generator=generator)


def penalties(tweets: Tweets, seed: int) -> Problem:
    """An L2 strength for each word, in a logistic regression."""
    return _penalties(tweets, seed, SIZES["train"], steps=200, size=50)


def penalties_with_more_data(tweets: Tweets, seed: int) -> Problem:
    return _penalties(tweets, seed, MORE, steps=100, size=100)


def _penalties(tweets: Tweets, seed: int, train: int, steps: int, size: int) -> Problem:
    strengths = torch.full((MANY_WORDS,), 1e-4)
    few = Box(
        {"l2": one(1e-4, 1e-6, 1e-1)}, lambda numbers: {"loss.l2": numbers["l2"].expand(MANY_WORDS).clone()},
        "one strength for all words",
    )  # fmt: skip
    return _problem(
        parts_of(tweets, MANY_WORDS, seed, train), seed, hft.sgd(lr=3.0, momentum=0.9), nothing(MANY_WORDS),
        {"loss.l2": Knob(strengths, 1e-6, 1e-1)}, few, steps, size, loss=penalised, own={"l2": strengths},
    )  # fmt: skip


def _problem(
    parts: Mapping[str, Examples], seed: int, optimizer: hft.Optimizer, start: Params,
    space: Mapping[str, Knob], few: Box, steps: int = 100, size: int = 50, loss: Any = None, own: Any = None,
    generator: torch.Generator | None = None,
) -> Problem:  # fmt: skip
    generator = generator or torch.Generator().manual_seed(seed)
    train = parts["train"]
    batches = [tuple(train.take(index)) for index in passes(len(train.y), steps, size, generator)]
    return Problem(
        optimizer, loss or cross_entropy(mlp), mlp, start, batches, parts["validation"], parts["test"], space,
        few, own=own, seed=seed,
    )  # fmt: skip


def penalised(params: Params, batch: tuple[Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    return cross_entropy(mlp)(params, batch) + (h["l2"] * params["0.weight"] ** 2).sum() / 2


def nothing(words: int) -> Params:
    """A logistic regression starts at 0."""
    return {"0.weight": torch.zeros(CLASSES, words), "0.bias": torch.zeros(CLASSES)}


@functools.lru_cache(maxsize=2)  # the contenders of a problem come one after the other
def parts_of(tweets: Tweets, words: int, seed: int, train: int | None = None) -> dict[str, Examples]:
    """The training part has `train` tweets (None: as usual)."""
    return bags(tweets, SIZES if train is None else SIZES | {"train": train}, words, seed)
