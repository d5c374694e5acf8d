"""A learning rate for each of 30 steps, learned through all of them: a table is the hparam."""

from __future__ import annotations

import sys

import torch

import hyperopt_ftp as hft

from ..digits import batches, digits, loss, network
from .curves import draw

K, RATES, DATA = 30, (0.3, 0.4, 0.5, 0.7, 1.0, 1.4), digits()[0]


def loss_after(table: torch.Tensor, seed: int) -> torch.Tensor:
    optimizer, steps = hft.per_step(hft.sgd(momentum=0.9), lr=table), list(batches(DATA, K, seed=seed))
    return loss(hft.train(optimizer, loss, network(seed), steps).params, DATA)


def mean_loss(table: torch.Tensor) -> float:
    return sum(loss_after(table, 10_000 + seed).item() for seed in range(10)) / 10  # networks and batches are new


def main(steps: int = 120, figure: str | None = None) -> dict[str, float]:
    flat, ramp = torch.ones(K, dtype=torch.float64), torch.linspace(1, 0, K + 1, dtype=torch.float64)[:-1]
    tables = {name: min((r * x for r in RATES), key=mean_loss) for name, x in (("constant", flat), ("linear", ramp))}
    log = tables["constant"].log().requires_grad_()
    outer = torch.optim.Adam([log], lr=0.1)
    for seed in range(steps):
        outer.zero_grad()
        loss_after(log.exp(), seed).backward()
        outer.step()
    tables["learned"] = log.detach().exp()
    losses = {name: mean_loss(table) for name, table in tables.items()}
    print(f"training loss after {K} steps", *(f"{name:>12} {x:.3f}" for name, x in losses.items()), sep="\n")
    if figure:
        draw(figure, tables, xlabel="step", ylabel="learning rate")
    return losses


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
