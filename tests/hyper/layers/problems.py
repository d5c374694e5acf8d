"""A small layer, and what close is."""

from __future__ import annotations

import torch
from torch import Tensor

f64 = torch.float64


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(seed + sum(shape)))


W, X = real(3, 3), real(4, 3)


def tanh(w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ w)


def assert_close(found, plain, rtol: float = 1e-12) -> None:
    for x, y in zip(found, plain, strict=True):
        assert (x - y).abs().max() <= rtol * y.abs().max()
