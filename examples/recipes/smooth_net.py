"""A network with second derivatives, for the sine curves."""

from __future__ import annotations

import torch
from torch import Tensor

from .sines import Batch

SHAPES = ((1, 40), 3.0), ((40,), 1.0), ((40, 40), 0.16), ((40,), 0.0), ((40, 1), 0.16)  # and standard deviations


def network(seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=g) for shape, scale in SHAPES]


def fit(p: list[Tensor], batch: Batch) -> Tensor:
    hidden = torch.tanh(torch.tanh(batch[0] / 5 @ p[0] + p[1]) @ p[2] + p[3])
    return ((hidden @ p[4] - batch[1] / 2.5) ** 2).mean()
