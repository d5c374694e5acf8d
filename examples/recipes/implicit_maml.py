"""Implicit MAML (arXiv 1909.04630): the meta-gradient depends on the end of training alone, not on its steps.

Each task is trained near a common center, with the penalty |p - center|^2 / 2; the center is an hparam of the loss.
Run: python -m examples.recipes.implicit_maml [--figure PATH]
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor

import hyperopt_ftp as hft

from .curves import draw
from .sines import Batch, sines
from .smooth_net import fit, network

SGD = hft.sgd(lr=0.02, momentum=0.8)
HOW = {"Unroll": hft.Unroll(), "Implicit": hft.Implicit("cg", iterations=40, tolerance=3e-3)}


def near(p: list[Tensor], batch: Batch, center: list[Tensor]) -> Tensor:
    return fit(p, batch) + torch.stack([((u - v) ** 2).sum() for u, v in zip(p, center, strict=True)]).sum() / 2


def adapted(center: list[Tensor], seen: Batch, new: Batch, count: int, name: str) -> Tensor:
    run = hft.train(SGD, near, center, [seen] * count, hparams={**SGD.hparams, "loss": center}, strategy=HOW[name])
    return fit(run.params, new)


def main(steps: int = 50, lengths: tuple[int, ...] = (50, 100, 200, 400), figure: str | None = None) -> dict[str, list]:
    g, exact, found = torch.Generator().manual_seed(0), None, {"Unroll": [], "Implicit": [], "loss": []}
    center = [x.requires_grad_() for x in network()]
    (x, y), (new_x, new_y) = sines(1, torch.Generator().manual_seed(2))
    print("inner steps: distance to the meta-gradient at convergence, and time of the backward pass")
    for count, name in [(2 * max(lengths), "Unroll"), *((count, name) for count in lengths for name in HOW)]:
        value, begin = adapted(center, (x[0], y[0]), (new_x[0], new_y[0]), count, name), time.perf_counter()
        slope = torch.cat([grad.flatten() for grad in torch.autograd.grad(value, center)])
        exact = slope if exact is None else exact
        found[name].append(((slope - exact).norm() / exact.norm()).item())
        print(f"{count:>6} {name:>9} {found[name][-1]:8.4f} {1e3 * (time.perf_counter() - begin):9.1f} ms")
    outer = torch.optim.Adam(center, lr=0.01)
    for _ in range(steps):
        outer.zero_grad()
        loss = torch.func.vmap(lambda seen, new: adapted(center, seen, new, 50, "Implicit"))(*sines(16, g)).mean()
        loss.backward()
        outer.step()
        found["loss"].append(loss.item())
    print(f"loss on new tasks: {found['loss'][0]:.3f} at first, {sum(found['loss'][-5:]) / 5:.3f} in the last 5 steps")
    if figure:
        curves = {name: (lengths, found[name][-len(lengths) :]) for name in HOW}
        draw(figure, curves, yscale="log", xlabel="inner steps", ylabel="error of the meta-gradient")
    return found


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
