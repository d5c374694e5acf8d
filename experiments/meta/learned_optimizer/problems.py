"""What optimizers are tested on: data and networks that meta-training has not seen."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, linear

from experiments.common.examples import Examples, digits, split
from experiments.common.small_networks import Batch, Params, mlp, mlp_params, passes
from experiments.common.tweets import bags, tweets

WORDS = 200  # that tweets are described by
Forward = Callable[[Params, Tensor], Tensor]


def convolutional_params(channels: tuple[int, int], classes: int, generator: torch.Generator) -> Params:
    """Of two 3x3 convolutions and a linear layer on 2 x 2 pooled pixels."""
    first, second = channels
    shapes = {"conv0": (first, 1, 3, 3), "conv1": (second, first, 3, 3), "head": (classes, 4 * second)}
    params = {}
    for name, shape in shapes.items():
        inputs = math.prod(shape[1:])
        params[f"{name}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / inputs)
        params[f"{name}.bias"] = torch.zeros(shape[0])
    return params


def convolutional(params: Params, x: Tensor) -> Tensor:
    x = x.unflatten(-1, (1, 8, 8))
    x = torch.relu(conv2d(x, params["conv0.weight"], params["conv0.bias"], padding=1))
    x = avg_pool2d(torch.relu(conv2d(x, params["conv1.weight"], params["conv1.bias"], padding=1)), 4)
    return linear(x.flatten(-3), params["head.weight"], params["head.bias"])


class Problem(NamedTuple):
    """A network and what it learns."""

    title: str
    of: str  # its data
    forward: Forward
    start: Callable[[torch.Generator], Params]
    longer: bool = False  # than what the other problems have of steps


def _layers(*sizes: int) -> Callable[[torch.Generator], Params]:
    """He's."""
    return lambda generator: mlp_params(sizes, generator, variance=2.0)


PROBLEMS = {
    "same": Problem("as in meta-training", "digits", mlp, _layers(64, 24, 10)),
    "wider": Problem("wider", "digits", mlp, _layers(64, 256, 10)),
    "deeper": Problem("deeper", "digits", mlp, _layers(64, 24, 24, 24, 24, 24, 10)),
    "convolutions": Problem("convolutions", "digits", convolutional, lambda g: convolutional_params((8, 16), 10, g)),
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
        train["tweets"], test["tweets"] = bags(tweets(), {"train": 2000, "test": 1000}, WORDS, seed=0).values()
    return Parts(own["meta"], train, test)


def batches(examples: Examples, size: int, steps: int, generator: torch.Generator) -> list[Batch]:
    return [(examples.x[part], examples.y[part]) for part in passes(len(examples.y), steps, size, generator)]
