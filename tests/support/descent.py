"""A training of three numbers by plain gradient descent, also by hand, and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

#: Params that require grad get no derivative of a strategy that starts from a constant, which says so.
told = pytest.mark.filterwarnings("ignore:params require grad, and this:UserWarning")


def one(x: float, **options: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, **options)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def line(params: Any, batch: Any) -> Tensor:
    """A loss with derivatives of all orders, of a tensor and a batch of its shape."""
    return torch.sin(params * batch).sum() + (params**2).sum()


W = torch.linspace(-1, 1, 3, dtype=torch.float64)
DATA = torch.linspace(-1, 2, 9, dtype=torch.float64).reshape(3, 3)
PLAIN = hft.sgd(lr=0.1)


def descent(params: Tensor, data: Any, lr: Any, loss: Any = line) -> Tensor:
    """Gradient descent by hand."""
    if not params.requires_grad:
        params = params.clone().requires_grad_()
    for x in data:
        params = params - lr * torch.autograd.grad(loss(params, x), params, create_graph=True)[0]
    return params


def trained(params: Any, data: Any, lr: Any, loss: Any = line, **options: Any) -> Any:
    return hft.train(PLAIN, loss, params, data, hparams={**PLAIN.hparams, "lr": lr}, **options)


def leaf_gradient(f: Any) -> Any:
    """f's gradient in eager mode."""

    def eager(x: list[Tensor]) -> list[Tensor]:
        leaves = [a.detach().clone().requires_grad_() for a in x]
        return list(torch.autograd.grad(f(leaves), leaves, materialize_grads=True))

    return eager
