"""The task of the third story: 16 small networks that learn the digits side by side, each on batches of its own.

One training is 20 steps of SGD with momentum, with a learning rate for each step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .. import digits
from ..digits import Batch, Params

STEPS, NETWORKS = 20, 16
(_X, _Y), TEST = digits.digits()
TRAIN, VALIDATION = (_X[:1000], _Y[:1000]), (_X[1000:], _Y[1000:])


def networks(seed: int) -> Params:
    return tree.map_tree(lambda *w: torch.stack(w), *(digits.network(NETWORKS * seed + i) for i in range(NETWORKS)))


def batches(count: int, seed: int) -> Iterator[Batch]:
    for x, y in digits.batches(TRAIN, count, size=64 * NETWORKS, seed=seed):
        yield x.unflatten(0, (NETWORKS, 64)), y.unflatten(0, (NETWORKS, 64))


def loss(params: Params, batch: Batch) -> Tensor:
    """The sum, so that no network feels another."""
    return vmap(digits.loss)(params, batch).sum()


def held_out(params: Params, data: Batch) -> Tensor:
    """The mean over networks, all of them on the same digits."""
    return vmap(digits.loss, in_dims=(0, None))(params, data).mean()


def sgd(rates: Tensor) -> hft.Optimizer:
    return hft.per_step(hft.sgd(momentum=0.9), lr=rates)


@torch.no_grad()
def after(rates: Tensor, data: Batch, seed: int) -> float:
    """Loss on held-out digits after a training."""
    run = hft.train(sgd(rates), loss, networks(seed), list(batches(STEPS, seed)))
    return held_out(run.params, data).item()
