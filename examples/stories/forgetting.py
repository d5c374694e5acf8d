"""Fine-tune without forgetting: a network that knows digits in three styles learns new ones in one of them.

Each method takes the learning rate that is best on validation digits in that style, since no others are available.
The test then shows what was forgotten. Run: python -m examples.stories.forgetting FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

import hyperopt_ftp as hft
from experiments.common.estimate import estimate
from experiments.common.figures import curves, mean_curve
from experiments.common.report_kit import fixed

from .folder import tell
from .styles import VALIDATION, Weights, accuracies, fine_tuning, pre_trained

OPTIMIZERS = {
    "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0),
    "FTPAdamW": lambda model, lr: hft.FTPAdamW(model.named_parameters(), lr=lr, foreach=True),
}
EVERY = 20  # steps between two tests


class Point(NamedTuple):
    """Accuracies in %."""

    trained: float  # test, in the style that is fine-tuned
    others: float  # test, mean of the other styles
    validation: float  # in the style that is fine-tuned


def point(model: torch.nn.Module, weights: Weights) -> Point:
    trained, *others = accuracies(model, weights)
    return Point(trained, sum(others) / len(others), accuracies(model, weights, VALIDATION)[0])


def fine_tune(anchor: torch.nn.Module, method: str, lr: float, seed: int, steps: int) -> dict[str, list[Point]]:
    """WiSE-FT is the mean of the anchor's weights and of those that AdamW has come to: no training of its own."""
    model, runs = deepcopy(anchor), {}
    for step in chain([0], fine_tuning(model, OPTIMIZERS[method](model, lr), steps, seed)):
        if step % EVERY == 0:
            found = {method: model.state_dict()}
            if method == "AdamW":
                found["WiSE-FT"] = hft.wise(model.state_dict(), anchor.state_dict(), 0.5)
            for name, weights in found.items():
                runs.setdefault(name, []).append(point(model, weights))
    return runs


def main(
    folder: Path, steps: int = 300, seeds: int = 3, lrs: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
) -> dict[str, dict[float, list[list[Point]]]]:
    anchor, runs, panels = pre_trained(), {}, {"the trained style": {}, "the other styles": {}}
    for method, lr, seed in ((m, lr, seed) for m in OPTIMIZERS for lr in lrs for seed in range(seeds)):
        for name, run in fine_tune(anchor, method, lr, seed, steps).items():
            runs.setdefault(name, {}).setdefault(lr, []).append(run)
    start = point(anchor, anchor.state_dict())
    print(f"test accuracy in % after {steps} steps, mean ± standard error of {seeds} seeds")
    print(f"{'':>22} {'lr':>6} {'trained style':>14} {'other styles':>14}")
    print(f"{'anchor, not fine-tuned':>22} {'':>6} {start.trained:14.1f} {start.others:14.1f}")
    for name, by_lr in runs.items():
        chosen = max(by_lr, key=lambda lr: sum(run[-1].validation for run in by_lr[lr]))
        for lr, found in by_lr.items():
            ends = [fixed(estimate([run[-1][i] for run in found])) for i in (0, 1)]
            print(f"{name:>22} {lr:6g} {ends[0]:>14} {ends[1]:>14}{'  chosen' if lr == chosen else ''}")
        for i, panel in enumerate(panels.values()):
            places = range(0, steps + 1, EVERY)
            panel[name] = mean_curve(places, [[at[i] for at in run] for run in by_lr[chosen]])
    curves(folder / "forgetting.png", panels, "step", "test accuracy (%)")
    return runs


if __name__ == "__main__":
    tell(main)
