"""Everything that decides the result of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Fixed

from experiments.classification.task import Config as Classification
from experiments.common.bilevel_loop import Radii
from experiments.common.errors import InputError

RADIUS_LR = 1e-2  # FTP's default


@dataclass(frozen=True)
class Way:
    """Of fine-tuning: FTPAdamW by a gradient, or radii moved after K steps by the hypergradient through them."""

    title: str
    gradient: Literal["paper", "exact"] | None = None
    depth: int = 1
    on_validation: bool = False

    def radii(self) -> Radii:
        """From the anchor, as FTP; a move in K steps is K times as large, so that radii can grow as fast."""
        return Radii(self.depth, self.on_validation, free_steps=0, radius_lr=self.depth * RADIUS_LR)


WAYS: Mapping[str, Way] = {
    "paper": Way("FTP, paper", gradient="paper"),
    "exact": Way("FTP, exact", gradient="exact"),
    "validation1": Way("one step, validation", on_validation=True),
    "train4": Way("full, K = 4, training", depth=4),
    "validation4": Way("full, K = 4, validation", depth=4, on_validation=True),
    "validation16": Way("full, K = 16, validation", depth=16, on_validation=True),
}


@dataclass(frozen=True)
class Plan:
    """What is compared, beside the options of any fine-tuning. It is without dropout: what is trained twice must be the
    same function twice."""

    methods: Fixed[tuple[str, ...]] = ("ftp",)
    lrs: Fixed[tuple[float, ...]] = ()
    wider: Fixed[tuple[tuple[str, float], ...]] = ()
    points: tuple[int, ...] = (4, 16, 40, 72, 104)  # steps of the run after which gradients are compared
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)  # steps K that full gradients go back through; the last is the measure
    ways: tuple[str, ...] = tuple(WAYS)  # of fine-tuning afterwards; none: only compare gradients
    ways_epochs: int = 4  # passes of these

    def check_plan(self) -> None:
        """Refuse what cannot be compared."""
        for name in ("points", "depths"):
            numbers = getattr(self, name)
            shown = " ".join(map(str, numbers))
            if not numbers or list(numbers) != sorted(set(numbers)) or numbers[0] < 1:
                raise InputError(f"--{name} {shown}: give different integers of at least 1, in rising order")
        if self.depths[0] != 1:
            raise InputError(f"--depths {' '.join(map(str, self.depths))}: must begin with 1, the one step of FTP")
        if not set(self.ways) <= WAYS.keys() or len(set(self.ways)) < len(self.ways):
            raise InputError(f"--ways {' '.join(self.ways)}: give any of {', '.join(WAYS)}, each once")

    @property
    def holds_out(self) -> bool:
        return True


@dataclass(frozen=True)
class Config(Plan, Classification):
    """Emoji, as in experiments.classification; dropout is of the anchor's training alone."""

    def check(self) -> None:
        super().check()
        self.check_plan()
