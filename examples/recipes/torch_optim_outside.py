"""Any optimizer of torch.optim, with a scheduler, tunes hyperparameters through training: by hand, and by bilevel.

Softmax regression on 100 digits: learning rate and weight decay, both in the logarithm, for the loss on other digits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

import hyperopt_ftp as hft

from ..digits import Batch, digits
from .curves import draw

(X, Y), VALIDATION = digits()
FEW, START, K = [(X[:100], Y[:100])], torch.zeros(64, 10, dtype=torch.float64), 30
SGD = hft.sgd(lr=0.01, momentum=0.9)
HPARAMS = {**SGD.hparams, "loss": torch.tensor(0.01, dtype=torch.float64)}  # the loss's own: weight decay


def loss(w: torch.Tensor, batch: Batch, l2: float | torch.Tensor = 0.0) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(batch[0] @ w, batch[1]) + l2 * (w**2).sum()


def by_hand(outer: Callable, schedule: Callable, steps: int) -> Iterator[float]:
    log_lr, log_l2 = (HPARAMS[name].log().requires_grad_() for name in ("lr", "loss"))
    optimizer = outer([log_lr, log_l2])
    scheduler = schedule(optimizer)
    for _ in range(steps):
        hparams = {**HPARAMS, "lr": log_lr.exp(), "loss": log_l2.exp()}
        value = loss(hft.train(SGD, loss, START, FEW * K, hparams=hparams).params, VALIDATION)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
        yield value.item()


def main(steps: int = 40, figure: str | None = None) -> dict[str, list[float]]:
    adam, sgd = partial(torch.optim.Adam, lr=0.3), partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    records = hft.bilevel(SGD, adam, ("lr", "loss"), loss, loss, START, FEW, [VALIDATION], inner_steps=K, reset=START,
                          outer_steps=steps, hparams=HPARAMS, constrain={"lr": "log", "loss": "log"})  # fmt: skip
    found = {"SGD, cosine": list(by_hand(sgd, cosine, steps)), "Adam, cosine": list(by_hand(adam, cosine, steps)),
             "Adam": list(by_hand(adam, constant, steps)), "Adam, by bilevel": [r.value for r in records]}  # fmt: skip
    print(f"{'validation loss':>16} {'first':>8} {'last':>8}")
    for name, values in found.items():
        print(f"{name:>16} {values[0]:8.4f} {values[-1]:8.4f}")
    if figure:
        draw(figure, found, xlabel="outer step", ylabel="validation loss")
    return found


if __name__ == "__main__":
    main(figure=sys.argv[2] if sys.argv[1:2] == ["--figure"] else None)
