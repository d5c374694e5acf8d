"""Fully connected networks as functions of their weights, and how they and others are trained."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def mlp_params(sizes: tuple[int, ...], generator: torch.Generator) -> Params:
    """Normal weights with a variance of 1 / inputs; biases are 0."""
    params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = torch.randn(outputs, inputs, generator=generator)
        params[f"{layer}.weight"] = weight * math.sqrt(1 / inputs)
        params[f"{layer}.bias"] = torch.zeros(outputs)
    return params


def mlp(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """The logits."""
    last = len(params) // 2 - 1
    for layer in range(last):
        x = activation(F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]))
    return F.linear(x, params[f"{last}.weight"], params[f"{last}.bias"])


def cross_entropy(predict: Callable[[Params, Tensor], Tensor]) -> Callable[[Params, Batch], Tensor]:
    """Of a network's logits."""
    return lambda params, batch: F.cross_entropy(predict(params, batch[0]), batch[1])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In %."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def passes(examples: int, steps: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Which examples each step sees: one random order after another, without what is left over at an end."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += [part for part in torch.randperm(examples, generator=generator).split(size) if len(part) == size]
    return found[:steps]


def stretches(
    optimizer: hft.Optimizer, loss: Callable[..., Any], params: Any, batches: Sequence[Any], stops: Sequence[int],
    hparams: Any = None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """A training that is looked at on its way: each of so many steps, in rising order, with the params after it; 0 is
    before the training."""
    state, done = None, 0
    for stop in stops:
        if stop > done:
            run = hft.train(optimizer, loss, params, batches[done:stop], hparams=hparams, state=state)
            params, state, done = run.params, run.state, stop
        yield stop, params
