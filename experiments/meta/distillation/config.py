"""Everything that decides the result of one run."""

import math
from dataclasses import dataclass, fields

from experiments.common.errors import InputError
from experiments.common.options import option
from experiments.meta.distillation.data import NAMES
from experiments.meta.distillation.networks import NETWORKS

STARTS = ("k-means", "random")


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = NAMES  # digits: 8 x 8 pixels; emoji: 16 x 16 in colour
    per_class: tuple[int, ...] = (1, 10)  # pictures a class
    seeds: tuple[int, ...] = (0, 1, 2)  # each a split, a choice of pictures, and initial weights of its own
    network: str = "mlp"  # that pictures are distilled with: mlp or convolutional; the other one is tested too
    start: str = "k-means"  # pictures that distillation starts from: k-means or random
    steps: int = 20  # K, of training on the pictures, that are differentiated through
    rounds: int = 150  # outer steps of distillation
    inits: int = 2  # new networks in each round
    outer_batch: int = 512  # training pictures that a round's networks are judged by
    picture_lr: float = 0.05  # of outer Adam, on the logits of the pixels
    lr: float = 0.03  # of training, that distillation starts from
    rate_lr: float = 0.02  # of outer Adam, on the logarithm of the learning rate
    track: int = 25  # rounds from one look at validation pictures to the next
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)  # of training, to choose from
    few_steps: tuple[int, ...] = (20, 60, 200)  # of training on a few pictures, to choose from
    whole_steps: tuple[int, ...] = (20, 60, 200, 400)  # of training on all pictures, to choose from
    whole_batch: int = 64  # pictures in one of those steps
    choice_inits: int = 2  # networks that validation accuracy is the mean of
    test_inits: int = 5  # others, that test accuracy is the mean of

    def check(self) -> None:
        for name, allowed in (("data", NAMES), ("per_class", None)):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given) or (allowed and not set(given) <= set(allowed)):
                what = "any of " + ", ".join(allowed) if allowed else "integers from 1 to 20"
                raise InputError(f"{option(name)} {' '.join(map(str, given))}: give {what}, each once")
        for name, allowed in (("network", tuple(NETWORKS)), ("start", STARTS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{option(name)} {getattr(self, name)}: allowed are {', '.join(allowed)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{option(field.name)} {value}: must be an integer of at least 1")
            if isinstance(value, float) and not (math.isfinite(value) and value > 0):
                raise InputError(f"{option(field.name)} {value}: must be a number above 0")
        if self.track > self.rounds:
            raise InputError(
                f"--track {self.track}: must be at most --rounds, {self.rounds}; else nothing is looked at"
            )
        if not all(1 <= count <= 20 for count in self.per_class):
            raise InputError(f"--per-class {' '.join(map(str, self.per_class))}: give integers from 1 to 20, each once")
        for name in ("lrs", "few_steps", "whole_steps"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or not 0 < values[0] <= values[-1] < math.inf:
                raise InputError(f"{option(name)} {' '.join(map(str, values))}: give numbers above 0 in rising order")

    @property
    def other_network(self) -> str:
        return next(name for name in NETWORKS if name != self.network)
