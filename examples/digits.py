"""The task of the examples: 1,797 hand-written digits of 8 x 8 pixels (scikit-learn ships them) and a small network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def digits(seed: int = 0) -> tuple[Batch, Batch]:
    """Training and validation pictures, in float64."""
    pictures, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(pictures)[order] / 16, torch.from_numpy(labels)[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def pictures(seed: int = 0) -> tuple[Batch, Batch]:
    """The digits as a network with ImageNet's weights takes pictures: three channels of 64 x 64 pixels in [-1, 1]."""

    def enlarged(x: Tensor) -> Tensor:
        return 2 * F.interpolate(x.float().view(-1, 1, 8, 8), size=64).expand(-1, 3, -1, -1) - 1

    train, test = digits(seed)
    return (enlarged(train[0]), train[1]), (enlarged(test[0]), test[1])


def network(seed: int = 0) -> Params:
    """Weights of a network with 32 tanh units."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden.weight": torch.randn(32, 64, generator=g, dtype=torch.float64) / 8,
        "hidden.bias": torch.zeros(32, dtype=torch.float64),
        "out.weight": torch.randn(10, 32, generator=g, dtype=torch.float64) / 6,
        "out.bias": torch.zeros(10, dtype=torch.float64),
    }


def logits(params: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, params["hidden.weight"], params["hidden.bias"]))
    return F.linear(hidden, params["out.weight"], params["out.bias"])


def loss(params: Params, batch: Batch) -> Tensor:
    return F.cross_entropy(logits(params, batch[0]), batch[1])


def accuracy(params: Params, batch: Batch) -> float:
    return 100 * (logits(params, batch[0]).argmax(1) == batch[1]).double().mean().item()


def batches(data: Batch, count: int, size: int = 64, seed: int = 1) -> Iterator[Batch]:
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        chosen = torch.randint(len(data[1]), (size,), generator=g)
        yield data[0][chosen], data[1][chosen]
