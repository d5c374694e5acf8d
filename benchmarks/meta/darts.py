"""DARTS on digits: the recipe's cell of two edges, and the derivative through one step on the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import hyperopt_ftp as hft
from examples.digits import Batch, batches, digits
from examples.recipes.darts import OPERATIONS

from .module import Module

LR, OUTER_LR = 0.03, 0.05


def loss(w: Tensor, batch: Batch, alpha: Tensor) -> Tensor:
    x = batch[0][:, None]
    for weights in torch.softmax(alpha, 1):
        x = torch.stack([operation(x) for operation in OPERATIONS], -1) @ weights
    return cross_entropy(x[:, 0] @ w, batch[1])


def start() -> tuple[Tensor, Tensor, Any]:
    """Weights, the cell's alpha, and pairs of a training and a validation batch."""
    w = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    alpha = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    train, validation = (list(batches(data, 20)) for data in digits())
    return w, alpha, list(zip(train, validation, strict=True))


def score(found: tuple[Tensor, Tensor]) -> float:
    w, alpha = found
    return loss(w, digits()[1], alpha).item()


def ours(w: Tensor, alpha: Tensor, data: Any) -> Iterator[Any]:
    inner, outer, how = hft.sgd(lr=LR), torch.optim.Adam([alpha], lr=OUTER_LR), hft.Unroll(checkpoint=False)
    for train, validation in data:
        w = hft.train(inner, loss, w.detach(), [train], hparams={"loss": alpha}, strategy=how).params
        outer.zero_grad()
        loss(w, validation, alpha).backward()
        outer.step()
        yield w, alpha


def with_torchopt(w: Tensor, alpha: Tensor, data: Any) -> Iterator[Any]:
    import torchopt

    module = Module(loss, w)
    inner, outer = torchopt.MetaSGD(module, lr=LR), torch.optim.Adam([alpha], lr=OUTER_LR)
    for train, validation in data:
        inner.step(module(train, alpha))
        outer.zero_grad()
        module(validation, alpha).backward()
        outer.step()
        torchopt.stop_gradient(module)
        yield module.params(), alpha


def with_higher(w: Tensor, alpha: Tensor, data: Any) -> Iterator[Any]:
    import higher

    module = Module(loss, w)
    inner, outer = torch.optim.SGD(module.parameters(), lr=LR), torch.optim.Adam([alpha], lr=OUTER_LR)
    for train, validation in data:
        outer.zero_grad()
        with higher.innerloop_ctx(module, inner) as (moving, steps):
            steps.step(moving(train, alpha))
            moving(validation, alpha).backward()
            module.load_state_dict(moving.state_dict())
        outer.step()
        yield module.params(), alpha
