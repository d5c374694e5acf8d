"""Implicit MAML on sine curves: 50 steps near a learned center, five products of conjugate gradients, 16 tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from examples.recipes.implicit_maml import near
from examples.recipes.sines import Batch, sines
from examples.recipes.smooth_net import fit, network

from .sine_tasks import one_by_one

TASKS, STEPS, LR, MOMENTUM, PRODUCTS, OUTER_LR = 16, 50, 0.02, 0.8, 5, 0.01


def start() -> tuple[list[Tensor], Any]:
    g = torch.Generator().manual_seed(0)
    return [x.requires_grad_() for x in network()], [sines(TASKS, g) for _ in range(20)]


def score(center: list[Tensor]) -> float:
    """The loss on new tasks, after training near the center."""
    opt = hft.sgd(lr=LR, momentum=MOMENTUM)

    def after(seen: Batch, new: Batch) -> Tensor:
        return fit(hft.train(opt, lambda p, batch: near(p, batch, center), center, [seen] * STEPS).params, new)

    return torch.func.vmap(after)(*sines(100, torch.Generator().manual_seed(1))).mean().item()


def ours(center: list[Tensor], data: Any) -> Iterator[list[Tensor]]:
    inner, outer = hft.sgd(lr=LR, momentum=MOMENTUM), torch.optim.Adam(center, lr=OUTER_LR)
    how = hft.Implicit("cg", iterations=PRODUCTS)

    def after(seen: Batch, new: Batch) -> Tensor:
        run = hft.train(inner, near, center, [seen] * STEPS, hparams={"loss": center}, strategy=how)
        return fit(run.params, new)

    for batch in data:
        outer.zero_grad()
        torch.func.vmap(after)(*batch).mean().backward()
        outer.step()
        yield center


def with_torchopt(center: list[Tensor], data: Any) -> Iterator[list[Tensor]]:
    import torchopt

    outer = torch.optim.Adam(center, lr=OUTER_LR)
    stationary = torch.func.grad(lambda p, center, batch: near(p, batch, center))
    solver = torchopt.linear_solve.solve_cg(maxiter=PRODUCTS, rtol=0.0)

    @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=solver)
    @torch.enable_grad()
    def trained(p: Any, center: Any, batch: Any) -> Any:
        p = tuple(x.detach().clone().requires_grad_() for x in p)
        inner = torch.optim.SGD(p, lr=LR, momentum=MOMENTUM)
        for _ in range(STEPS):
            inner.zero_grad()
            near(p, batch, center).backward(inputs=p)
            inner.step()
        return p

    for batch in data:
        outer.zero_grad()
        for seen, new in one_by_one(batch):
            (fit(trained(tuple(center), tuple(center), seen), new) / TASKS).backward()  # pyright: ignore[reportArgumentType]
        outer.step()
        yield center
