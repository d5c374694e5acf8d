"""Fully connected networks as functions of their weights, and the batches that they are trained on."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.tuning.search.problem import Params


def weights(sizes: tuple[int, ...], generator: torch.Generator) -> Params:
    params = {}
    for number, (before, after) in enumerate(pairwise(sizes)):
        params[f"{number}.weight"] = torch.randn(after, before, generator=generator) * before**-0.5
        params[f"{number}.bias"] = torch.zeros(after)
    return params


def logits(params: Params, x: Tensor) -> Tensor:
    layers = len(params) // 2
    for number in range(layers):
        x = F.linear(x, params[f"{number}.weight"], params[f"{number}.bias"])
        if number + 1 < layers:
            x = torch.relu(x)
    return x


def cross_entropy(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(logits(params, batch[0]), batch[1])


def order(examples: int, steps: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Which examples each step sees: one random order after another, without what is left over at an end."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += [part for part in torch.randperm(examples, generator=generator).split(size) if len(part) == size]
    return found[:steps]
