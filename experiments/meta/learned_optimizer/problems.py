"""What optimizers are tested on: data and networks that meta-training has not seen."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.common.digits import digits
from experiments.common.examples import Examples, split
from experiments.common.tweets import bag_of_words, tweets
from experiments.meta.learned_optimizer.networks import Batch, Forward, Params, mlp, mlp_params
from experiments.meta.learned_optimizer.networks import convolutional as convolve
from experiments.meta.learned_optimizer.networks import convolutional_params as filters

WORDS = 200  # that tweets are described by


class Problem(NamedTuple):
    """A network and what it learns."""

    title: str
    of: str  # its data
    forward: Forward
    start: Callable[[torch.Generator], Params]
    longer: bool = False  # than what the other problems have of steps


def _layers(*sizes: int) -> Callable[[torch.Generator], Params]:
    return lambda generator: mlp_params(sizes, 1.0, generator)


PROBLEMS = {
    "same": Problem("as in meta-training", "digits", mlp, _layers(64, 24, 10)),
    "wider": Problem("wider", "digits", mlp, _layers(64, 256, 10)),
    "deeper": Problem("deeper", "digits", mlp, _layers(64, 24, 24, 24, 24, 24, 10)),
    "convolutions": Problem("convolutions", "digits", convolve, lambda g: filters((8, 16), 10, g)),
    "tweets": Problem("tweets", "tweets", mlp, _layers(WORDS, 24, 3)),
    "longer": Problem("longer", "digits", mlp, _layers(64, 24, 10), longer=True),
}


@dataclass(frozen=True)
class Parts:
    """Of the digits, one half is for meta-training; the other, and the tweets, are what problems train and test on."""

    meta: Examples
    train: dict[str, Examples]  # by the name of the data
    test: dict[str, Examples]

    def fingerprint(self) -> str:
        parts = (self.meta, *self.train.values(), *self.test.values())
        return "-".join(part.fingerprint()[:6] for part in parts)

    def about(self) -> dict:
        sizes = {name: (len(part.y), len(self.test[name].y)) for name, part in self.train.items()}
        return {"meta_digits": len(self.meta.y), "sizes": sizes}


def load_parts(names: Collection[str]) -> Parts:
    """Of the problems of these names."""
    own = split(digits(), {"meta": 898, "train": 699, "test": 200}, seed=0)
    train, test = {"digits": own["train"]}, {"digits": own["test"]}
    if any(PROBLEMS[name].of == "tweets" for name in names):
        train["tweets"], test["tweets"] = _tweets()
    return Parts(own["meta"], train, test)


def _tweets() -> tuple[Examples, Examples]:
    found = tweets()
    index = Examples(torch.arange(len(found.texts)), found.labels)
    parts = split(index, {"train": 2000, "test": 1000}, seed=0).values()
    texts = [[found.texts[i] for i in part.x.tolist()] for part in parts]
    words = bag_of_words(texts[0], WORDS, *texts[1:])
    train, test = (Examples(x, part.y) for x, part in zip(words, parts, strict=True))
    return train, test


def batches(examples: Examples, size: int, steps: int, generator: torch.Generator) -> list[Batch]:
    """Random examples, epoch after epoch without the incomplete batch at an epoch's end."""
    found: list[Tensor] = []
    while len(found) < steps:
        order = torch.randperm(len(examples.y), generator=generator)
        found += [part for part in order.split(size) if len(part) == size]
    return [(examples.x[part], examples.y[part]) for part in found[:steps]]
