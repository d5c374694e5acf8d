"""Dataset distillation (arXiv 1811.10959): ten images that teach a network more than ten real ones.

The images and the learning rate are learned, so that ten steps of training on them alone, from a new random
network each time, do well on real digits. Run: python -m examples.recipes.distillation [--figure PATH]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..digits import accuracy, batches, digits, loss, network

STEPS = 10  # of training on the ten images
LABELS = torch.arange(10)


def taught(images: Tensor, lr: Tensor, seed: int) -> dict[str, Tensor]:
    """A network that has seen nothing but the images: a function of them, and of lr."""
    opt = hft.sgd()
    return hft.train(opt, loss, network(seed), [(images, LABELS)] * STEPS, hparams={"lr": lr}).params


def distil(steps: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    log_lr = torch.tensor(0.3, dtype=torch.float64).log().requires_grad_()
    outer = torch.optim.Adam([{"params": [images]}, {"params": [log_lr], "lr": 0.005}], lr=0.02)
    for seed, batch in enumerate(batches(digits()[0], steps, size=256)):
        outer.zero_grad()
        loss(taught(images, log_lr.exp(), seed), batch).backward()
        outer.step()
    return images.detach(), log_lr.exp().detach()


def main(steps: int = 200, figure: str | None = None) -> dict[str, float]:
    (x, y), held_out = digits()
    real, (images, lr) = torch.stack([x[y == label][0] for label in LABELS]), distil(steps)
    rates, scores = [torch.tensor(2.0**k) for k in range(-3, 3)], {}
    print(f"accuracy on held-out digits after {STEPS} steps on ten images, mean of 10 new networks")
    for name, ten, choice in (("ten real ones, best lr", real, rates), ("distilled, learned lr", images, [lr])):
        seeds = range(10_000, 10_010)
        found = [(sum(accuracy(taught(ten, r, seed), held_out) for seed in seeds) / 10, r.item()) for r in choice]
        scores[name.split(",")[0]], best = max(found)
        print(f"{name:>24} {max(found)[0]:6.1f} %   lr {best:.3f}")
    if figure:
        import matplotlib.pyplot as plt

        for ax, image in zip(plt.subplots(2, 10, figsize=(8, 1.8))[1].flat, [*real, *images], strict=True):
            ax.imshow(image.reshape(8, 8).numpy(), cmap="gray_r")
            ax.set_axis_off()
        plt.savefig(figure, dpi=120)
    return scores


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
