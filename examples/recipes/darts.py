"""DARTS (arXiv 1806.09055) in the small: two edges mix operations by softmax(alpha), tuned on validation data."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

import hyperopt_ftp as hft

from .curves import draw

SGD, READOUT = hft.sgd(lr=0.03), torch.randn(16, generator=torch.Generator().manual_seed(0))
OPERATIONS = [lambda x: x - x.roll(1, -1), lambda x: max_pool1d(x, 3, 1, 1),  # these two, in this order, made the data
              lambda x: avg_pool1d(x, 3, 1, 1), torch.abs, lambda x: x]  # fmt: skip


def signals(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 1, 16, generator=g)
    return x, OPERATIONS[1](OPERATIONS[0](x)) @ READOUT + 0.5 * torch.randn(count, 1, generator=g)


def loss(w: Tensor, batch: tuple[Tensor, Tensor], alpha: Tensor) -> Tensor:
    x = batch[0]
    for weights in torch.softmax(alpha, 1):
        x = torch.stack([operation(x) for operation in OPERATIONS], -1) @ weights
    return ((x @ w - batch[1]) ** 2).mean()


def search(steps: int, second_order: bool, seed: int) -> tuple[Tensor, Tensor]:
    g, values, alpha = torch.Generator().manual_seed(seed), [], torch.zeros(2, 5, requires_grad=True)
    train, validation, w = signals(50, g), signals(50, g), torch.randn(16, generator=g) / 4
    outer = torch.optim.Adam([alpha], lr=0.05)
    for _ in range(steps):
        with torch.set_grad_enabled(second_order):  # first order: alpha counts in the validation loss alone
            w = hft.train(SGD, loss, w.detach(), [train], hparams={**SGD.hparams, "loss": alpha}).params
        values.append(loss(w, validation, alpha))
        outer.zero_grad()
        values[-1].backward()
        outer.step()
    return torch.stack(values).detach(), torch.softmax(alpha.detach(), 1)


def main(steps: int = 300, seeds: int = 5, figure: str | None = None) -> dict[str, list[float]]:
    lines, found = {}, {}
    print(f"{f'mean of {seeds} runs':>14} {'validation loss':>16} {'weights of the right operations':>33}")
    for name in ("second order", "first order"):
        values, weights = zip(*(search(steps, name == "second order", seed) for seed in range(seeds)), strict=True)
        lines[name], found[name] = torch.stack(values).mean(0), torch.stack(weights).mean(0).diag().tolist()
        print(f"{name:>14} {lines[name][-1]:16.3f} {found[name][0]:16.3f} {found[name][1]:16.3f}")
    if figure:
        draw(figure, lines, xlabel="step", ylabel="validation loss", yscale="log")
    return found


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
