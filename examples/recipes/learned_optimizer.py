"""A learned optimizer (arXiv 1606.04474, 1810.10180): a small network that computes every weight's step.

It is meta-trained on random quadratics, by backpropagation through training or by evolution strategies.
Run: python -m examples.recipes.learned_optimizer [--figure PATH]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import hyperopt_ftp as hft

from .curves import draw
from .learned_rule import learned, weights

STEPS = 40  # of training on a task


def tasks(count: int, seed: int) -> tuple[Tensor, Tensor]:
    ab = torch.randn(count, 10, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ab[..., :10] / 10**0.5, ab[..., 10:]  # one task for each row: a x = b


def loss(x: Tensor, task: tuple[Tensor, Tensor]) -> Tensor:
    return ((task[0] @ x - task[1]) ** 2).sum()


def reached(x: Tensor, task: tuple[Tensor, Tensor]) -> Tensor:
    return ((task[0] @ x - task[1]) ** 2).sum((1, 2)).log10().mean()


def trained(opt: hft.Optimizer, task: tuple[Tensor, Tensor]) -> tuple[float, Tensor]:
    run = hft.train(opt, loss, torch.zeros_like(task[1]), [task] * STEPS)
    return reached(run.params, task).item(), run.losses / len(task[0])


def main(steps: int = 100, figure: str | None = None) -> dict[str, float]:
    test, rates, g = tasks(200, 10_000), [2.0 ** (k / 2) for k in range(-12, 3)], torch.Generator().manual_seed(0)
    makers = {"SGD": hft.sgd, "momentum": lambda lr: hft.sgd(lr, 0.9), "Adam": hft.adam}
    found = {name: min((trained(make(lr), test) for lr in rates), key=lambda x: x[0]) for name, make in makers.items()}
    start, ours = torch.zeros(16, 10, 1, dtype=torch.float64), [tasks(16, k) for k in range(steps)]
    for strategy in (hft.Unroll(truncate=20), hft.ZeroOrder(16, sigma=0.02, generator=g)):
        *_, last = hft.bilevel(
            learned(weights()), hft.clipped(hft.adam(lr=0.02), 1.0), "net", loss, reached, start,
            [task for task in ours for _ in range(STEPS)], ours,
            inner_steps=STEPS, outer_steps=steps, strategy=strategy, reset=start,
        )  # fmt: skip
        found[type(strategy).__name__] = trained(learned(last.tuned["net"]), test)
    print(f"log10 of the loss after {STEPS} steps on 200 new quadratics")
    print("\n".join(f"{name:>10} {score:8.2f}" for name, (score, _) in found.items()))
    if figure:
        draw(figure, {name: losses for name, (_, losses) in found.items()}, yscale="log", xlabel="step", ylabel="loss")
    return {name: score for name, (score, _) in found.items()}


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
