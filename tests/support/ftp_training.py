"""FTP's three classes by name, a small model, and training that can be replayed: a batch is known by its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from .executions import FLAGS

every_class = pytest.mark.parametrize("name", ["FTPAdamW", "FTPSGD", "FTP(AdamW)"])


def build(name: str, params: Any, execution: str, **options: Any) -> Any:
    """An optimizer of a class; radii grow fast enough to be seen, and slowly enough to bind."""
    options = {"radius_lr": 0.03, **options}
    if name == "FTPAdamW":
        return hft.FTPAdamW(params, 0.05, weight_decay=0.0, **FLAGS[execution], **options)
    if name == "FTPSGD":
        return hft.FTPSGD(params, 0.05, momentum=0.9, **FLAGS[execution], **options)
    return hft.FTP(torch.optim.AdamW(params, lr=0.05, weight_decay=0.0, **FLAGS[execution]), **options)


def net(seed: int = 0) -> torch.nn.Sequential:
    """Three layers: ``0`` and ``2`` have parameters, ``3`` is the head."""
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    return torch.nn.Sequential(*layers).double()


def loss(model: Callable[[Tensor], Tensor], t: int) -> Tensor:
    """Of the batch of step t."""
    g = torch.Generator().manual_seed(100 + t)
    x, y = (torch.randn(8, n, generator=g, dtype=torch.float64) for n in (5, 3))
    return ((model(x) - y - 1) ** 2).mean()


def train(model: Any, opt: Any, steps: Iterable[int]) -> None:
    """Steps on the batches of these numbers."""
    for t in steps:
        opt.zero_grad()
        loss(model, t).backward()
        opt.step()


def weights(model: torch.nn.Module) -> list[Tensor]:
    """A copy of them, as they are now."""
    return [p.detach().clone() for p in model.parameters()]
