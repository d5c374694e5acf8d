"""The tasks of MAML (arXiv 1703.03400, section 5.1): sine curves of random amplitude and phase, and a small network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # x and y, each of shape (points, 1)


def sines(count: int, g: torch.Generator) -> tuple[Batch, Batch]:
    """Of each task, ten points to learn from and ten others."""
    u = torch.rand(count, 22, 1, generator=g)
    x, scale, shift = 10 * u[:, 2:] - 5, 0.1 + 4.9 * u[:, :1], torch.pi * u[:, 1:2]
    y = scale * torch.sin(x - shift)
    return (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])


def network(seed: int = 0) -> dict[str, Any]:
    """Weights of a network with two layers of 40 units, its body, and a head."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"body": ((1, 40), (40,), (40, 40), (40,)), "head": ((40, 1), (1,))}
    return {part: [torch.randn(s, generator=g) / s[0] ** 0.5 for s in shapes[part]] for part in shapes}


def predict(net: dict[str, Any], x: Tensor) -> Tensor:
    (w0, b0, w1, b1), (w2, b2) = net["body"], net["head"]
    return torch.relu(torch.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2


def loss(net: dict[str, Any], batch: Batch) -> Tensor:
    return ((predict(net, batch[0]) - batch[1]) ** 2).mean()


def head_loss(head: list[Tensor], batch: Batch, body: list[Tensor]) -> Tensor:
    return loss({"body": body, "head": head}, batch)
