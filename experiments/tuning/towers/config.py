"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import check_fields

TaskName = Literal["digits", "tweets"]
Base = Literal["sgd", "adam"]
Way = Literal["log", "raw"]

HIGHEST = 10  # a step's time grows with every level; above this a number is mistyped
LOWEST_LR, HIGHEST_LR = -6, 1  # powers of ten: the ends of the first learning rates
BATCH_SIZE = 64  # examples in one step
HYPER_LR = 0.1  # way log: lr of the Adam above the base
HYPER_RATIO = 0.1  # way log: lr of each further Adam, as a share of that of the one below it
WITHIN = (0.1, 0.2)  # shares of the base's best fall of the loss that may be missing to count
TIMED_STEPS = 20  # training steps timed at once


@dataclass(frozen=True)
class Config:
    """Towers of every height from every first learning rate, for each task and each base."""

    tasks: tuple[TaskName, ...] = ("digits", "tweets")  # digits: classes of pictures; tweets: the next character
    bases: tuple[Base, ...] = ("sgd", "adam")  # the optimizer of the weights, at the bottom of the tower
    # log: Adam on the logarithm; raw: the base's kind and first lr at all levels
    ways: tuple[Way, ...] = ("log", "raw")
    heights: tuple[int, ...] = (0, 1, 2, 3, 4)  # levels above the base; 0, the base alone, must be one of them
    seeds: tuple[int, ...] = (0, 1, 2)  # of split, first weights and order of the examples
    per_decade: int = 2  # learning rates in a decade
    steps: int = 500  # of training
    rounds: int = 15  # timings of each height, in turns; their median counts

    def check(self) -> None:
        check_fields(self, heights=0)
        if 0 not in self.heights or max(self.heights) > HIGHEST:
            raise InputError(
                f"--heights {' '.join(map(str, self.heights))}: must be from 0 to {HIGHEST}, and 0 among them: the "
                "base alone is what towers are compared with"
            )

    @property
    def lrs(self) -> list[float]:
        """Equally far apart in their logarithm, both ends included."""
        count = (HIGHEST_LR - LOWEST_LR) * self.per_decade
        return [10 ** (LOWEST_LR + k / self.per_decade) for k in range(count + 1)]
