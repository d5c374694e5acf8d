"""Meta-Weight-Net on digits of which 40 % have a wrong label: a network weighs each sample by its loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import hyperopt_ftp as hft
from examples.digits import Batch, Params, batches, digits, logits, loss, network

from .module import Module

LR, OUTER_LR = 1.0, 3e-3


def weighted(params: Params, batch: Batch, weigh: Params) -> Tensor:
    losses = cross_entropy(logits(params, batch[0]), batch[1], reduction="none")
    hidden = torch.relu(losses.detach()[:, None] @ weigh["w0"] + weigh["b0"])
    weights = torch.sigmoid(hidden @ weigh["w1"])[:, 0]
    return (weights * losses).sum() / weights.sum()


def start() -> tuple[Params, Params, Batch, Any]:
    """A network, one that weighs, 100 clean samples, and noisy batches."""
    g = torch.Generator().manual_seed(0)
    x, y = digits()[0]
    wrong = torch.rand(len(y), generator=g) < 0.4
    flipped = torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=g)) % 10, y)
    shapes = {"w0": (1, 32), "b0": (32,), "w1": (32, 1)}
    weigh = {name: torch.randn(shape, generator=g, dtype=torch.float64) / 4 for name, shape in shapes.items()}
    noisy = list(batches((x[100:], flipped[100:]), 20, size=100))
    return network(), {name: w.requires_grad_() for name, w in weigh.items()}, (x[:100], y[:100]), noisy


def score(params: Params) -> float:
    return loss(params, digits()[1]).item()


def ours(params: Params, weigh: Params, clean: Batch, noisy: Any) -> Iterator[Any]:
    inner, outer, how = hft.sgd(lr=LR), torch.optim.Adam(weigh.values(), lr=OUTER_LR), hft.Unroll(checkpoint=False)
    for batch in noisy:
        ahead = hft.train(inner, weighted, params, [batch], hparams={"loss": weigh}, strategy=how).params
        outer.zero_grad()
        loss(ahead, clean).backward()
        outer.step()
        with torch.no_grad():
            params = hft.train(inner, weighted, params, [batch], hparams={"loss": weigh}).params
        yield params


def with_torchopt(params: Params, weigh: Params, clean: Batch, noisy: Any) -> Iterator[Any]:
    import torchopt

    module = Module(weighted, params)
    inner, outer = torchopt.MetaSGD(module, lr=LR), torch.optim.Adam(weigh.values(), lr=OUTER_LR)
    sgd = torch.optim.SGD(module.parameters(), lr=LR)
    before = torchopt.extract_state_dict(module)
    for batch in noisy:
        inner.step(module(batch, weigh))
        outer.zero_grad()
        loss(module.params(), clean).backward()
        outer.step()
        torchopt.recover_state_dict(module, before)
        sgd.zero_grad()
        module(batch, {k: w.detach() for k, w in weigh.items()}).backward()
        sgd.step()
        yield module.params()


def with_higher(params: Params, weigh: Params, clean: Batch, noisy: Any) -> Iterator[Any]:
    import higher

    module = Module(weighted, params)
    inner, outer = torch.optim.SGD(module.parameters(), lr=LR), torch.optim.Adam(weigh.values(), lr=OUTER_LR)
    for batch in noisy:
        outer.zero_grad()
        with higher.innerloop_ctx(module, inner) as (moving, steps):
            steps.step(moving(batch, weigh))
            loss(moving.params(), clean).backward()  # pyright: ignore[reportCallIssue]
        outer.step()
        inner.zero_grad()
        module(batch, {k: w.detach() for k, w in weigh.items()}).backward()
        inner.step()
        yield module.params()
