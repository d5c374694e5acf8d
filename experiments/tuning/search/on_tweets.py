"""Problems on the sentiment of tweets, read as bags of words."""

import functools

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples, split
from experiments.common.tweets import Tweets, bag_of_words
from experiments.tuning.search.networks import cross_entropy, logits, order, weights
from experiments.tuning.search.problem import Box, Knob, Params, Problem, as_it_is
from experiments.tuning.search.spaces import ADAM, LR, one

SIZES = {"train": 1000, "validation": 1000, "test": 2000}
MORE = 2000  # tweets to train on, in a problem beside
WORDS, MANY_WORDS = 2000, 10_000
CLASSES = 3


def learning_rate(tweets: Tweets, seed: int) -> Problem:
    """Of a logistic regression."""
    parts, generator = bags(tweets, WORDS, seed), torch.Generator().manual_seed(seed)
    return Problem(
        "tweets, learning rate", hft.sgd(momentum=0.9), cross_entropy, logits, nothing(WORDS),
        batches(parts["train"], 100, 50, generator), parts["validation"], parts["test"], LR, as_it_is(LR), seed=seed,
    )  # fmt: skip


def adam(tweets: Tweets, seed: int) -> Problem:
    """Of a network with 32 hidden units."""
    parts, generator = bags(tweets, WORDS, seed), torch.Generator().manual_seed(seed)
    return Problem(
        "tweets, Adam's five", hft.adamw(), cross_entropy, logits, weights((WORDS, 32, CLASSES), generator),
        batches(parts["train"], 100, 50, generator), parts["validation"], parts["test"], ADAM, as_it_is(ADAM),
        seed=seed,
    )  # fmt: skip


def penalties(tweets: Tweets, seed: int) -> Problem:
    """An L2 strength for each word, in a logistic regression."""
    return _penalties("tweets, L2", tweets, seed, SIZES["train"], steps=200, size=50)


def penalties_with_more_data(tweets: Tweets, seed: int) -> Problem:
    return _penalties("tweets, L2, more data", tweets, seed, MORE, steps=100, size=100)


def _penalties(name: str, tweets: Tweets, seed: int, train: int, steps: int, size: int) -> Problem:
    parts, generator = bags(tweets, MANY_WORDS, seed, train), torch.Generator().manual_seed(seed)
    space = {"loss.l2": Knob(torch.full((MANY_WORDS,), 1e-4), 1e-6, 1e-1)}
    few = Box(
        {"l2": one(1e-4, 1e-6, 1e-1)}, lambda numbers: {"loss.l2": numbers["l2"].expand(MANY_WORDS).clone()},
        "one strength for all words",
    )  # fmt: skip
    return Problem(
        name, hft.sgd(lr=3.0, momentum=0.9), penalised, logits, nothing(MANY_WORDS),
        batches(parts["train"], steps, size, generator), parts["validation"], parts["test"], space, few,
        own={"l2": space["loss.l2"].default}, seed=seed,
    )  # fmt: skip


def penalised(params: Params, batch: tuple[Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    return cross_entropy(params, batch) + (h["l2"] * params["0.weight"] ** 2).sum() / 2


def nothing(words: int) -> Params:
    """A logistic regression starts at 0."""
    return {"0.weight": torch.zeros(CLASSES, words), "0.bias": torch.zeros(CLASSES)}


def batches(train: Examples, steps: int, size: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    return [(train.x[index], train.y[index]) for index in order(len(train.y), steps, size, generator)]


@functools.lru_cache(maxsize=2)  # the contenders of a problem come one after the other
def bags(tweets: Tweets, words: int, seed: int, train: int | None = None) -> dict[str, Examples]:
    """The words are those of the training part, which has `train` tweets (None: as usual)."""
    sizes = SIZES if train is None else SIZES | {"train": train}
    index = split(Examples(torch.arange(len(tweets.texts)), tweets.labels), sizes, seed)
    texts = [[tweets.texts[i] for i in part.x] for part in index.values()]
    found = bag_of_words(texts[0], words, *texts[1:])
    return {name: Examples(x, part.y) for (name, part), x in zip(index.items(), found, strict=True)}
