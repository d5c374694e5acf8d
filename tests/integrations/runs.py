"""What the tests of all libraries share: small data, and what equal runs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hyperopt_ftp as hft


def loader(examples: int = 24, size: int = 4) -> DataLoader[tuple[Tensor, ...]]:
    """The same batches, in the same order, at each call."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(examples, 4, generator=g), torch.randint(2, (examples,), generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def network() -> nn.Sequential:
    """The same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def is_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights and buffers are equal to the last bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pure(named: Iterable[tuple[str, nn.Parameter]]) -> hft.PureOptimizer:
    """Adam for the last layer, SGD with momentum for the rest."""
    parts = {"head": hft.adam(lr=1e-2), "body": hft.sgd(lr=0.1, momentum=0.9)}
    return hft.PureOptimizer(named, hft.partition(parts, {"*2.*": "head", "*": "body"}))


#: Optimizers of the network's named parameters, whose last layer is free.
BUILD: dict[str, Callable[[Iterable[tuple[str, nn.Parameter]]], Any]] = {
    "FTPAdamW": lambda named: hft.FTPAdamW(named, lr=1e-2, exclude="*2.*"),
    "FTP": lambda named: hft.FTP(torch.optim.RMSprop(named, lr=1e-2), exclude="*2.*"),
    "SPD": lambda named: hft.SPD(torch.optim.AdamW(named, lr=1e-2), exclude="*2.*"),
    "PureOptimizer": pure,
}
every_build = pytest.mark.parametrize("name", BUILD)


def by_hand(name: str, every: int, decay: int) -> tuple[nn.Module, Any]:
    """An epoch in a plain loop: a step each ``every`` batches, a smaller rate after each ``decay`` steps."""
    net = network()
    opt = BUILD[name](net.named_parameters())
    schedule = torch.optim.lr_scheduler.StepLR(opt, decay)
    for i, (x, y) in enumerate(loader()):
        (nn.functional.cross_entropy(net(x), y) / every).backward()
        if (i + 1) % every == 0:
            opt.step()
            schedule.step()
            opt.zero_grad()
    return net, opt


def has_moved(model: nn.Module, start: nn.Module) -> bool:
    """Whether some trainable weight of two dimensions differs: a test of equal runs is none where nothing happens."""
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return any(not torch.equal(p, q) for p, q in pairs if p.requires_grad and p.ndim > 1)
