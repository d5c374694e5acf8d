"""Textures in space: a number between 0 and 1 for each point, by which two colours are mixed."""

import torch
from einops import rearrange
from torch import Tensor

PLAIN, CHECKERS, STRIPES, DOTS, MARBLE = range(5)


def texture(kind: Tensor, points: Tensor, frequency: Tensor) -> Tensor:
    """Of points [n, p, 3], with a kind and a frequency for each of n: [n, p]."""
    q = points * rearrange(frequency, "n -> n 1 1")
    cells = q.floor()
    values = torch.stack(
        [
            torch.zeros_like(q[..., 0]),
            cells.sum(-1) % 2,
            (0.5 + 0.5 * torch.sin(torch.pi * 2 * (q[..., 0] + 0.5 * q[..., 1]))),
            ((q - cells - 0.5).square().sum(-1) < 0.09).float(),
            0.5 + 0.5 * torch.sin(3 * q[..., 1] + 6 * noise(q)),
        ]
    )
    return values.gather(0, rearrange(kind, "n -> 1 n 1").expand(1, *values.shape[1:]))[0]


def noise(q: Tensor) -> Tensor:
    """Numbers between 0 and 1 at whole points, and between them smoothly mixed: [..., 3] to [...]."""
    cell = q.floor()
    part = q - cell
    part = part * part * (3 - 2 * part)
    total = torch.zeros_like(q[..., 0])
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], dtype=q.dtype)
        weight = torch.where(step.bool(), part, 1 - part).prod(-1)
        total = total + weight * _scattered(cell + step)
    return total


def _scattered(cell: Tensor) -> Tensor:
    """A number for each whole point that looks random; multiplications of integers, so the same on all machines."""
    x, y, z = cell.long().unbind(-1)
    mixed = (x * 374761393 + y * 668265263 + z * 2147483647) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).to(torch.float32) / 0xFFFF
