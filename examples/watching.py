"""What an optimizer did to each layer, as three figures. Run: python -m examples.watching FOLDER

A network that knows the digits is fine-tuned on noisy ones by FTP; a tower tunes the learning rate of another.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import plot
from hyperopt_ftp.types import Constraint

from .digits import batches, digits, loss, network


def net() -> nn.Sequential:
    """Six layers, and a head."""
    sizes = [64, 96, 96, 64, 64, 48, 48]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(48, 10)).double()


def train(model: nn.Sequential, opt: torch.optim.Optimizer, noise: float, steps: int) -> None:
    for x, y in batches(digits()[0], steps):
        opt.zero_grad()
        F.cross_entropy(model(x + noise * torch.randn_like(x)), y).backward()
        opt.step()


def fine_tuning(folder: Path) -> None:
    """radii.png and distance.png."""
    torch.manual_seed(0)
    model = net()
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), noise=0.0, steps=300)
    opt = hft.FTPAdamW(model.named_parameters(), lr=3e-3, exclude="12.*")
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "layers.csv"
        hft.watch(opt, log)
        train(model, opt, noise=0.4, steps=150)
        plot.radii(*plot.history(log, "radius")).savefig(folder / "radii.png", dpi=200)
    plot.distances(hft.measure(opt)).savefig(folder / "distance.png", dpi=200)


def tower(folder: Path) -> None:
    """traces.png: SGD from a learning rate that is 100 times too small."""
    log: dict[str, Constraint] = {"lr": "log"}
    by = hft.hyper(hft.adam(lr=0.05), by=hft.sgd(lr=10.0), over="lr", constrain=log)
    opt = hft.hyper(hft.sgd(lr=3e-3), by=by, over="lr", constrain=log)
    params, states = network(), []
    state = opt.init(params)
    for batch in batches(digits()[0], 200):
        params, state = opt.update(torch.func.grad(loss)(params, batch), state, params)
        states.append(state)
    plot.traces(states).savefig(folder / "traces.png", dpi=200)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("give a folder for the figures: python -m examples.watching FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    fine_tuning(folder)
    tower(folder)
    print(f"radii.png, distance.png and traces.png are in {folder}")


if __name__ == "__main__":
    main()
