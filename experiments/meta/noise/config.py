"""Everything that decides the result of one run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from experiments.common.errors import InputError
from experiments.common.options import option

DataSet = Literal["digits", "tweets"]
Kind = Literal["uniform", "pair"]
MethodName = Literal["noisy", "clean", "both", "smoothing", "small", "each_outer", "each", "net_outer", "net", "oracle"]

# Examples of each part.
SIZES: Mapping[DataSet, Mapping[str, int]] = {
    "digits": {"noisy": 1000, "clean": 100, "validation": 200, "test": 497},
    "tweets": {"noisy": 4000, "clean": 200, "validation": 400, "test": 2000},
}


@dataclass(frozen=True)
class Config:
    """What is compared, and how it is trained."""

    datasets: tuple[DataSet, ...] = ("digits", "tweets")  # what is learned
    kinds: tuple[Kind, ...] = ("uniform",)  # of wrong labels: another class by chance, or always the next one
    methods: tuple[MethodName, ...] = get_args(MethodName)  # rows of the table
    seeds: tuple[int, ...] = (0, 1, 2)  # of the split, the wrong labels, the first weights and the order
    noise: float = 0.4  # share of the noisy set whose labels are wrong
    steps: int = 500  # of each training
    looks: int = 20  # times that accuracy is looked at in a training; those at which it may be stopped
    batch: int = 100  # noisy examples in a step
    clean_batch: int = 32  # clean examples in a step, for what is trained on them
    clean_share: float = 0.2  # of the clean examples' loss in that of a step, where there are noisy ones too
    hidden: int = 64  # width of the network
    features: int = 1000  # words and pairs of words that tweets are described by
    momentum: float = 0.9  # of SGD
    digits_lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)  # learning rates to choose from, on digits
    tweets_lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # the same on tweets
    smoothing: tuple[float, ...] = (0.2, 0.4)  # strengths of label smoothing to choose from
    weight_lrs: tuple[float, ...] = (0.1, 0.3)  # learning rates of Adam to choose from, for a weight per example
    meta_lrs: tuple[float, ...] = (1e-4, 1e-3)  # the same, for the Meta-Weight-Net
    inner_steps: int = 1  # steps that a hypergradient goes back through
    ramp: float = 0.2  # share of the steps in which small-loss selection comes to keep 1 - noise

    @property
    def stretch(self) -> int:
        """Steps from one look to the next."""
        return self.steps // self.looks

    def lrs(self, name: DataSet) -> tuple[float, ...]:
        return self.digits_lrs if name == "digits" else self.tweets_lrs

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        for name in ("datasets", "kinds", "methods", "digits_lrs", "tweets_lrs", "smoothing", "weight_lrs", "meta_lrs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                self._refuse(name, "give at least one, and each once")
        for name in ("digits_lrs", "tweets_lrs", "weight_lrs", "meta_lrs"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                self._refuse(name, "must be numbers above 0")
        if not all(0 <= value < 1 for value in self.smoothing):
            self._refuse("smoothing", "must be numbers from 0 to below 1")
        for name in ("steps", "looks", "batch", "clean_batch", "hidden", "features", "inner_steps"):
            if getattr(self, name) < 1:
                self._refuse(name, "must be an integer of at least 1")
        for name in self.datasets:
            if self.batch > (count := SIZES[name]["noisy"]):
                self._refuse("batch", f"{name} have {count} noisy examples; give at most that")
        for name in ("noise", "clean_share", "ramp"):
            if not 0 < getattr(self, name) < 1:
                self._refuse(name, "must be a number between 0 and 1, both excluded")
        if not 0 <= self.momentum < 1:
            self._refuse("momentum", "must be a number from 0 to below 1")
        if round((1 - self.noise) * self.batch) < 1:
            self._refuse(
                "batch", f"with --noise {self.noise:g} small-loss selection would keep none of so few examples"
            )
        if self.steps % (self.looks * self.inner_steps):
            self._refuse("steps", f"must be a multiple of --looks {self.looks} times --inner-steps {self.inner_steps}")

    def _refuse(self, name: str, allowed: str) -> None:
        value = getattr(self, name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
        raise InputError(f"{option(name)} {shown}: {allowed}")
