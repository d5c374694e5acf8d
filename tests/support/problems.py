"""Small problems with smooth losses, and the two grounds of truth: a plain loop and central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperopt_ftp import Optimizer, tree


def start(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"w": (3, 4), "b": (4,)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def batches(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(steps)]


def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x.to(params["w"].dtype) @ params["w"] + params["b"]).square().mean() * 3


def train(opt: Optimizer, hparams: Any, params: Any, data: list[Tensor]) -> tuple[Any, Any]:
    state = opt.init(params, hparams)
    for x in data:
        grads = torch.func.grad(loss)(params, x)
        params, state = opt.update(grads, state, params, hparams)
    return params, state


def central_differences(f: Callable[[Any], Tensor], hparams: Any, h: float = 1e-4) -> list[Tensor]:
    """Central differences of f for each entry of each leaf, extrapolated from h and h/2: error h^4 + 1e-16 / h."""
    values, rebuild = tree.flatten(hparams)
    result = []
    for i, value in enumerate(values):
        for unit in torch.eye(value.numel(), dtype=value.dtype):
            step = h * unit.reshape(value.shape)
            at = [f(rebuild([*values[:i], value + s * step, *values[i + 1 :]])) for s in (1, -1, 0.5, -0.5)]
            result.append((4 * (at[2] - at[3]) / h - (at[0] - at[1]) / (2 * h)) / 3)
    return result


def entries(values: Any) -> Tensor:
    """All entries of all leaves, one after the other."""
    return torch.cat([x.reshape(-1) for x in tree.leaves(values)])


def largest_difference(a: Any, b: Any) -> float:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs if x.numel())
