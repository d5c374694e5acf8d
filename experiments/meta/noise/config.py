"""Options of the study, and what all its trainings have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import check_fields

DataSet = Literal["digits", "tweets"]

# Examples of each part.
SIZES: Mapping[DataSet, Mapping[str, int]] = {
    "digits": {"noisy": 1000, "clean": 100, "validation": 200, "test": 497},
    "tweets": {"noisy": 4000, "clean": 200, "validation": 400, "test": 2000},
}
NOISE = 0.4  # share of the noisy set whose labels are wrong: another class, by chance
WORDS = 1000  # words and pairs of words that tweets are described by
HIDDEN = 64  # width of the network
MOMENTUM = 0.9  # of SGD
BATCH = 100  # noisy examples in a step
CLEAN_BATCH = 32  # clean examples in a step, for what is trained on them
CLEAN_SHARE = 0.2  # of the clean examples' loss in that of a step, where there are noisy ones too
RAMP = 0.2  # share of the steps in which small-loss selection comes to keep 1 - NOISE


@dataclass(frozen=True)
class Config:
    """Which settings are tried."""

    datasets: tuple[DataSet, ...] = ("digits", "tweets")  # what is learned
    seeds: tuple[int, ...] = (0, 1, 2)  # of the split, the wrong labels, the first weights and the order
    steps: int = 500  # of each training
    looks: int = 20  # times that accuracy is looked at in a training
    digits_lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)  # learning rates to choose from, on digits
    tweets_lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # the same on tweets
    smoothing: tuple[float, ...] = (0.2, 0.4)  # strengths of label smoothing to choose from
    weight_lrs: tuple[float, ...] = (0.1, 0.3)  # learning rates of Adam to choose from, for a weight per example
    meta_lrs: tuple[float, ...] = (1e-4, 1e-3)  # the same, for the Meta-Weight-Net

    @property
    def stretch(self) -> int:
        """Steps from one look to the next."""
        return self.steps // self.looks

    def lrs(self, name: DataSet) -> tuple[float, ...]:
        return self.digits_lrs if name == "digits" else self.tweets_lrs

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        check_fields(self)
        if not all(value < 1 for value in self.smoothing):
            raise InputError(f"--smoothing {' '.join(map(str, self.smoothing))}: must be below 1")
        if self.steps % self.looks:
            raise InputError(f"--steps {self.steps}: must be a multiple of --looks {self.looks}")
