"""Everything that decides the result of one run."""

import math
from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import option

TaskName = Literal["digits", "tweets"]
Base = Literal["sgd", "adam"]
Way = Literal["log", "raw"]


HIGHEST = 10  # a step's time grows with every level; above this a number is mistyped


@dataclass(frozen=True)
class Config:
    """Towers of every height from every first learning rate, for each task and each base."""

    tasks: tuple[TaskName, ...] = ("digits", "tweets")  # digits: classes of pictures; tweets: the next character
    bases: tuple[Base, ...] = ("sgd", "adam")  # the optimizer of the weights, at the bottom of the tower
    ways: tuple[Way, ...] = (
        "log",
        "raw",
    )  # log: Adam on the logarithm; raw: the base's kind and first lr at all levels
    heights: tuple[int, ...] = (0, 1, 2, 3, 4)  # levels above the base; 0, the base alone, must be one of them
    seeds: tuple[int, ...] = (0, 1, 2)  # of split, first weights and order of the examples
    lowest: int = -6  # the smallest first learning rate is 10 to this power
    highest: int = 1  # the largest one is 10 to this power
    per_decade: int = 2  # learning rates in a decade
    steps: int = 500  # of training
    batch_size: int = 64  # examples in one step
    hyper_lr: float = 0.1  # way log: lr of the Adam above the base
    hyper_ratio: float = 0.1  # way log: lr of each further Adam, as a share of that of the one below it
    within: tuple[float, ...] = (0.1, 0.2)  # shares of the base's best fall of the loss that may be missing to count
    timed_steps: int = 20  # training steps timed at once; 0: no timing
    rounds: int = 15  # timings of each height, in turns; their median counts

    def check(self) -> None:
        for name in ("tasks", "bases", "ways", "heights", "within"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} {' '.join(map(str, values))}: give at least one, each once")
        if 0 not in self.heights or not 0 <= min(self.heights) <= max(self.heights) <= HIGHEST:
            raise InputError(
                f"--heights {' '.join(map(str, self.heights))}: must be from 0 to {HIGHEST}, and 0 among them: the "
                "base alone is what towers are compared with"
            )
        if not -30 <= self.lowest < self.highest <= 10:
            raise InputError(
                f"--lowest {self.lowest} --highest {self.highest}: give powers of ten from -30 to 10, the lowest first"
            )
        for name, least in {"per_decade": 1, "steps": 1, "batch_size": 1, "timed_steps": 0, "rounds": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be at least {least}")
        for name in ("hyper_lr", "hyper_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be a finite number above 0")
        if not all(0 < share < 1 for share in self.within):
            raise InputError(f"--within {' '.join(map(str, self.within))}: must be between 0 and 1, both excluded")

    @property
    def lrs(self) -> list[float]:
        """Equally far apart in their logarithm, both ends included."""
        count = (self.highest - self.lowest) * self.per_decade
        return [10 ** (self.lowest + k / self.per_decade) for k in range(count + 1)]
