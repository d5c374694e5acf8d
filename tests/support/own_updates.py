"""Updates of an optimizer of one's own, right and wrong ones, and the strategies that meet them."""

from __future__ import annotations

import warnings

import torch

import hyperopt_ftp as hft
from hyperopt_ftp.types import Optimizer

F64 = torch.float64
STRATEGIES = {
    "Unroll()": hft.Unroll(),
    "every point": hft.Unroll(checkpoint=1),
    "log": hft.Unroll(checkpoint="log"),
    "Forward": hft.Forward(),
    "Forward, chunks": hft.Forward(chunk=1),
    "Implicit": hft.Implicit(solver="neumann", tolerance=1e9),
}
W, DATA = torch.zeros(2, dtype=F64), [torch.ones(2, dtype=F64)] * 3


def loss(p, x):
    return ((p - x) ** 2).sum()


def momentum(update) -> Optimizer:
    """With a state ``m``, a count ``t``, and hparams ``lr`` and ``b``."""
    hparams = {"lr": torch.tensor(0.1, dtype=F64), "b": torch.tensor(0.9, dtype=F64)}
    return Optimizer(lambda p, h=None: {"m": torch.zeros_like(p), "t": torch.zeros(())}, update, hparams)


def slopes(opt: Optimizer, strategy: hft.hyper.Strategy, steps: int = 4) -> None:
    data, over = [torch.ones(2, dtype=F64)] * steps, ["lr", "b"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(training has not converged|holds the optimizer's state|exactly 0).*")
        hft.hypergradient(opt, loss, lambda p: ((p - 2) ** 2).sum(), W, data, over=over, strategy=strategy)


def right(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"]) * g
    return p - h["lr"] * m, {**s, "m": m}


def takes_item(g, s, p, h):
    m = h["b"] * s["m"] + (1 - h["b"].item()) * g
    return p - h["lr"] * m, {**s, "m": m}


def takes_nothing(g, s, p, h):
    return p - h["lr"] * g, s


def takes_float(g, s, p, h):
    return p - float(h["lr"]) * g, s


def acts_later(g, s, p, h):
    if not s["m"].any():
        return p, {**s, "m": g}
    return p - float(h["lr"]) * (g + s["m"]) / 2, {**s, "m": torch.zeros_like(g)}
