"""Two small networks as functions of their weights; weights of several networks are stacked, drawn at once."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Params = dict[str, Tensor]
Shape = tuple[int, int, int]  # channels, height, width


class Network(NamedTuple):
    sizes: Callable[[Shape, int], dict[str, tuple[int, ...]]]  # of the weights, by picture shape and classes
    logits: Callable[[Params, Tensor], Tensor]  # of one network, for pictures [N, *Shape]

    def new(self, shape: Shape, classes: int, count: int, generator: Generator) -> Params:
        """Weights of `count` networks: normal, with a variance of 1 / inputs; biases 0."""
        made = {}
        for name, size in self.sizes(shape, classes).items():
            made[name] = torch.randn(count, *size, generator=generator) / math.sqrt(math.prod(size[1:]))
            made[name + ".bias"] = torch.zeros(count, size[0])
        return made


def _mlp_sizes(shape: Shape, classes: int) -> dict[str, tuple[int, ...]]:
    return {"hidden": (64, math.prod(shape)), "out": (classes, 64)}


def _mlp(p: Params, x: Tensor) -> Tensor:
    hidden = F.silu(F.linear(x.flatten(1), p["hidden"], p["hidden.bias"]))
    return F.linear(hidden, p["out"], p["out.bias"])


def _convolutional_sizes(shape: Shape, classes: int) -> dict[str, tuple[int, ...]]:
    channels, height, width = shape
    return {
        "first": (8, channels, 3, 3),
        "second": (16, 8, 4, 4),
        "out": (classes, 16 * (height // 4) * (width // 4)),
    }


def _convolutional(p: Params, x: Tensor) -> Tensor:
    x = F.avg_pool2d(F.silu(F.conv2d(x, p["first"], p["first.bias"], padding=1)), 2)
    x = F.silu(F.conv2d(x, p["second"], p["second.bias"], padding=1, stride=2))
    return F.linear(x.flatten(1), p["out"], p["out.bias"])


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(_mlp_sizes, _mlp),
    "convolutional": Network(_convolutional_sizes, _convolutional),
}
