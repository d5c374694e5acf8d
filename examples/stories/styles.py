"""The task of two stories: digits in three styles, a network that knows them all, and new digits in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..digits import Batch, batches, digits

Weights = Mapping[str, Tensor]

#: What is done to a picture; fine-tuning sees the first style alone.
STYLES = {
    "plain": lambda x: x,
    "inverted": lambda x: 1 - x,
    "turned": lambda x: x.unflatten(1, (8, 8)).rot90(1, (1, 2)).flatten(1),
}
(_X, _Y), TEST = digits()
KNOWN, NEW, VALIDATION = ((_X[part], _Y[part]) for part in (slice(500), slice(500, 1100), slice(1100, None)))


def network() -> nn.Sequential:
    """Four layers, and a head."""
    layers = [m for a, b in pairwise((64, 96, 96, 64, 64)) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10)).double()


def pre_trained(steps: int = 300) -> nn.Sequential:
    """It has learned the known digits in every style."""
    torch.manual_seed(0)
    model = network()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x, y in batches(KNOWN, steps):
        opt.zero_grad()
        torch.stack([F.cross_entropy(model(style(x)), y) for style in STYLES.values()]).sum().backward()
        opt.step()
    return model


def fine_tuning(model: nn.Module, opt: torch.optim.Optimizer, steps: int, seed: int = 0) -> Iterator[int]:
    """Learn the new digits in the first style, and stop after each step, which is counted from 1."""
    for step, (x, y) in enumerate(batches(NEW, steps, seed=seed), 1):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
        yield step


@torch.no_grad()
def accuracies(model: nn.Module, weights: Weights, data: Batch = TEST) -> list[float]:
    """In %, one for each style."""
    x, y = data
    found = [functional_call(model, dict(weights), (style(x),)).argmax(1) == y for style in STYLES.values()]
    return [100 * right.double().mean().item() for right in found]
