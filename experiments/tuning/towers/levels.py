"""The towers: which optimizer is at which level, and the learning rate that each begins with."""

from typing import Any

from torch import Tensor

import hyperopt_ftp as hft
from experiments.tuning.towers.config import Base, Config, Way
from hyperopt_ftp.types import Constraint

LOG: dict[str, Constraint] = {"lr": "log"}
KINDS = {"sgd": hft.sgd, "adam": hft.adam}


def tower(base: Base, height: int, way: Way, config: Config) -> hft.Optimizer:
    """`base` with `height` optimizers above it, each of which tunes the learning rate of the one below.

    "log": all are Adam and move the logarithm; their own learning rates are fixed numbers, each smaller than the one
    below.

    "raw": as in arXiv 1909.13371: all are of the base's kind, move the learning rate itself, and begin with that of the
    base, which `first_hparams` sets.
    """
    levels = [KINDS[base]()]
    for k in range(height):
        levels.append(hft.adam(lr=config.hyper_lr * config.hyper_ratio**k) if way == "log" else KINDS[base]())
    built = levels.pop()
    while levels:
        built = hft.hyper(levels.pop(), by=built, over="lr", constrain=LOG if way == "log" else None)
    return built


def first_hparams(hparams: dict[str, Any], lr: Tensor, way: Way) -> dict[str, Any]:
    """A tower's hparams with another first learning rate of its base, in the raw way of all its levels."""
    if "by" not in hparams:
        return {**hparams, "lr": lr}
    above = hparams["by"] if way == "log" else first_hparams(hparams["by"], lr, way)
    return {"base": {**hparams["base"], "lr": lr}, "by": above}
