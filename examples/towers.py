"""Towers of optimizers correct a wrong learning rate: one that is 100 times too small, and one 10 times too large.

The recipe: tune the learning rate in its logarithm. If it is too small, let Adam move it, since Adam's steps do not
depend on how small the hypergradients are. If it is too large, let SGD, whose steps grow with the error. On top of
either, SGD tunes the hyper-learning-rate. Run: python -m examples.towers
"""

from __future__ import annotations

import torch

import hyperopt_ftp as hft
from hyperopt_ftp.types import Constraint

from .digits import batches, digits, loss, network

GOOD = 0.3  # about the best learning rate of plain SGD here
LOG: dict[str, Constraint] = {"lr": "log"}


def tower(lr: float, middle: hft.Optimizer) -> hft.Optimizer:
    """SGD, whose lr is tuned by ``middle``, whose lr is tuned by SGD: three levels."""
    by = hft.hyper(middle, by=hft.sgd(lr=1e-2), over="lr", constrain=LOG)
    return hft.hyper(hft.sgd(lr=lr), by=by, over="lr", constrain=LOG)


FROM_BELOW, FROM_ABOVE = hft.adam(lr=0.05), hft.sgd(lr=0.1)


def train(opt: hft.Optimizer, steps: int = 200) -> tuple[float, float | None]:
    """Training loss after so many steps, and the learning rate it ended with where that is tuned."""
    data, _ = digits()
    params, state = network(), opt.init(network())
    for batch in batches(data, steps):
        params, state = opt.update(torch.func.grad(loss)(params, batch), state, params)
    lr = state.tuned["lr"].item() if hasattr(state, "tuned") else None
    return loss(params, data).item(), lr


def main() -> None:
    print(f"{'learning rate':>22} {'plain SGD':>12} {'tower of 3':>12} {'lr at the end':>15}")
    rows = [
        ("100 times too small", GOOD / 100, FROM_BELOW),
        ("good", GOOD, FROM_BELOW),
        ("10 times too large", GOOD * 10, FROM_ABOVE),
    ]
    for name, lr, middle in rows:
        plain, _ = train(hft.sgd(lr=lr))
        tuned, end = train(tower(lr, middle))
        print(f"{name:>22} {plain:12.3f} {tuned:12.3f} {end:15.3f}")
    print("training loss after 200 steps; digits, 10 classes (chance: 2.303)")


if __name__ == "__main__":
    main()
