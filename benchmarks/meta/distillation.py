"""Dataset distillation on digits: ten images and a learning rate, by ten steps of a new network in each meta-step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from examples.digits import batches, digits, loss, network

from .module import Module

STEPS, LABELS, OUTER_LR = 10, torch.arange(10), 0.02


def start() -> tuple[Tensor, Tensor, Any]:
    """Images, the logarithm of a learning rate, and pairs of a new network and a batch."""
    images = torch.rand(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_lr = torch.tensor(0.3, dtype=torch.float64).log()
    data = zip(map(network, range(20)), batches(digits()[0], 20, size=256), strict=True)
    return images.requires_grad_(), log_lr.requires_grad_(), list(data)


def score(learned: tuple[Tensor, Tensor]) -> float:
    """The loss on held-out digits of a new network after training on the images."""
    images, log_lr = learned
    run = hft.train(hft.sgd(), loss, network(10_000), [(images, LABELS)] * STEPS, hparams={"lr": log_lr.exp()})
    return loss(run.params, digits()[1]).item()


def ours(images: Tensor, log_lr: Tensor, data: Any, how: Any = None) -> Iterator[Any]:
    inner, outer = hft.sgd(), torch.optim.Adam([images, log_lr], lr=OUTER_LR)
    for net, batch in data:
        taught = [(images, LABELS)] * STEPS
        run = hft.train(inner, loss, net, taught, hparams={"lr": log_lr.exp()}, strategy=how)
        outer.zero_grad()
        loss(run.params, batch).backward()
        outer.step()
        yield images, log_lr


def compiled(images: Tensor, log_lr: Tensor, data: Any) -> Iterator[Any]:
    return ours(images, log_lr, data, hft.Unroll(compile=True))


def with_torchopt(images: Tensor, log_lr: Tensor, data: Any) -> Iterator[Any]:
    import torchopt

    outer = torch.optim.Adam([images, log_lr], lr=OUTER_LR)
    for net, batch in data:
        module = Module(loss, net)
        inner = torchopt.MetaSGD(module, lr=log_lr.exp())  # pyright: ignore[reportArgumentType]
        for _ in range(STEPS):
            inner.step(module((images, LABELS)))
        outer.zero_grad()
        module(batch).backward()
        outer.step()
        yield images, log_lr


def with_higher(images: Tensor, log_lr: Tensor, data: Any) -> Iterator[Any]:
    import higher

    outer = torch.optim.Adam([images, log_lr], lr=OUTER_LR)
    for net, batch in data:
        module = Module(loss, net)
        inner = torch.optim.SGD(module.parameters(), lr=1.0)
        outer.zero_grad()
        with higher.innerloop_ctx(module, inner, override={"lr": [log_lr.exp()]}) as (moving, steps):
            for _ in range(STEPS):
                steps.step(moving((images, LABELS)))
            moving(batch).backward()
        outer.step()
        yield images, log_lr
