"""Small networks as functions of their params, so that many of them train at once by vmap."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, linear

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]
Forward = Callable[[Params, Tensor], Tensor]


def mlp_params(sizes: tuple[int, ...], scale: float, generator: torch.Generator) -> Params:
    """He's initial weights times ``scale``."""
    params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = torch.randn(outputs, inputs, generator=generator)
        params[f"weight{layer}"] = weight * scale * math.sqrt(2 / inputs)
        params[f"bias{layer}"] = torch.zeros(outputs)
    return params


def mlp(params: Params, x: Tensor) -> Tensor:
    last = len(params) // 2 - 1
    for layer in range(last):
        x = torch.relu(linear(x, params[f"weight{layer}"], params[f"bias{layer}"]))
    return linear(x, params[f"weight{last}"], params[f"bias{last}"])


def tanh_mlp(params: Params, x: Tensor) -> Tensor:
    last = len(params) // 2 - 1
    for layer in range(last):
        x = torch.tanh(linear(x, params[f"weight{layer}"], params[f"bias{layer}"]))
    return linear(x, params[f"weight{last}"], params[f"bias{last}"])


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


def loss_of(forward: Forward) -> Callable[[Params, Batch], Tensor]:
    return lambda params, batch: cross_entropy(forward(params, batch[0]), batch[1])
