"""A thousand L2 coefficients, one for each input, by the implicit function theorem (arXiv 1911.02590).

A logistic regression learns from 200 rows with the 64 pixels of a digit and 1,000 columns of noise. One
coefficient for each input finds the columns of noise. Run: python -m examples.recipes.l2_coefficients [--figure PATH]
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft

from ..digits import Batch, digits
from .curves import draw


def data(noise: int) -> tuple[Batch, Batch, Batch]:
    (x, y), (held_x, held_y) = digits()
    x, y = torch.cat([x, held_x]) - 0.3, torch.cat([y, held_y])
    columns = torch.randn(len(x), noise, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    x = torch.cat([x, 0.35 * columns], 1)  # the pixels' mean and deviation, about
    return (x[:200], y[:200]), (x[200:700], y[200:700]), (x[700:], y[700:])


def loss(w: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(batch[0] @ w, batch[1])


def penalised(w: Tensor, batch: Batch, h: dict[str, Tensor]) -> Tensor:
    return loss(w, batch) + (h["log_l2"].exp() * w.T**2).sum() / 2


def main(steps: int = 25, noise: int = 1000, figure: str | None = None) -> dict[str, float]:
    train, validation, test = data(noise)
    opt, how = hft.sgd(lr=0.7, momentum=0.9), hft.Implicit("cg", iterations=100, damping=0.01, tolerance=0.01)
    start, found, scores = torch.zeros(64 + noise, 10, dtype=torch.float64), torch.zeros(0), {}
    print(f"{'coefficients':>12} {'validation loss':>16} {'test accuracy':>14}")
    for shape in ((), (64 + noise,)):
        hparams = {"loss": {"log_l2": torch.full(shape, -3.0, dtype=torch.float64)}}
        *_, last = hft.bilevel(
            opt, hft.adam(lr=0.2), "loss.log_l2", penalised, loss, start, [train], [validation], inner_steps=100,
            outer_steps=steps, strategy=how, hparams=hparams,
        )  # fmt: skip
        found, name = last.tuned["loss.log_l2"].exp(), "one for each" if shape else "one for all"
        scores[name] = 100 * ((test[0] @ last.state.params).argmax(1) == test[1]).double().mean().item()
        print(f"{name:>12} {last.value:16.3f} {scores[name]:12.1f} %")
    pixels, noisy = found[:64].sort().values, found[64:].sort().values
    print(f"median coefficient: {pixels.median():.4f} of pixels, {noisy.median():.4f} of noise")
    if figure:
        lines = {name: (torch.linspace(0, 1, len(x)), x) for name, x in (("noise", noisy), ("pixels", pixels))}
        draw(figure, lines, yscale="log", xlabel="part of the inputs", ylabel="coefficient, at most")
    return {**scores, "pixels": pixels.median().item(), "noise": noisy.median().item()}


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
