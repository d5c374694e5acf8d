"""FTP's three classes by name and their pure rule, a small model, and training that can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from .executions import FLAGS

CLASSES = ("FTPAdamW", "FTPSGD", "FTP(AdamW)")
every_class = pytest.mark.parametrize("name", CLASSES)
F64 = {"rtol": 1e-11, "atol": 1e-12}  # roundings of some steps in float64, in whatever order


def build(name: str, params: Any, execution: str, *, lr: Any = 0.05, decay: float = 0.0, **options: Any) -> Any:
    """An optimizer of a class; radii grow fast enough to be seen, and slowly enough to bind."""
    options = {"radius_lr": 0.03, **options}
    flags = FLAGS[execution] | {k: options.pop(k) for k in ("maximize",) if k in options}
    if name == "FTPAdamW":
        return hft.FTPAdamW(params, lr, weight_decay=decay, **flags, **options)
    if name == "FTPSGD":
        return hft.FTPSGD(params, lr, momentum=0.9, weight_decay=decay, **flags, **options)
    base = {"lr": options.pop("base_lr", lr), "weight_decay": decay, **flags}
    return hft.FTP(torch.optim.AdamW(params, **base), **options)


class Pure:
    """The pure rule of a class on the parameters of a model, whose gradients it is given."""

    def __init__(self, name: str, model: torch.nn.Module, lr: float = 0.05, radius_lr: float = 0.03) -> None:
        base = hft.sgd(lr=lr, momentum=0.9) if name == "FTPSGD" else hft.adamw(lr=lr, weight_decay=0.0)
        self.values = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.rule = hft.ftp(base, dict(self.values), radius_lr=radius_lr)
        self.state = self.rule.init(self.values)

    def step(self, grads: Iterable[Tensor], **numbers: Any) -> None:
        """``numbers``: hyperparameters of this step."""
        tree = dict(zip(self.values, (g.detach().clone() for g in grads), strict=True))
        self.values, self.state = self.rule.update(tree, self.state, self.values, self.rule.hparams | numbers)

    def check(self, model: torch.nn.Module, opt: Any, prefix: str = "") -> None:
        """``model`` and its radii in ``opt`` are where the rule has come to."""
        radii = opt.radii()
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), self.values[n], **F64)
            assert radii[prefix + n] == pytest.approx(self.state.radius[n].item(), rel=1e-9)


def train_both(model: Any, opt: Any, pure: Pure, steps: Iterable[int]) -> None:
    for t in steps:
        opt.zero_grad()
        loss(model, t).backward()
        pure.step([p.grad for p in model.parameters()])
        opt.step()
        pure.check(model, opt)


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    """Three layers: ``0`` and ``2`` have parameters, ``3`` is the head."""
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    return torch.nn.Sequential(*layers).to(dtype)


def loss(model: Callable[[Tensor], Tensor], t: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of the batch of step t."""
    g = torch.Generator().manual_seed(100 + t)
    x = torch.randn(8, 5, generator=g, dtype=torch.float64).to(dtype)
    y = torch.randn(8, 3, generator=g, dtype=torch.float64).to(dtype)
    return ((model(x) - y - 1) ** 2).mean()


def train(model: Any, opt: Any, steps: Iterable[int] = range(5)) -> None:
    for t in steps:
        opt.zero_grad()
        loss(model, t, next(model.parameters()).dtype).backward()
        opt.step()


def feed(params: Iterable[Tensor], grads: Iterable[Tensor | None], opt: Any) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()
    opt.step()


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]
