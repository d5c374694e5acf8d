"""Everything that decides the result of one run."""

import math
from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import option

_COUNTS = ("anchor_steps", "steps", "batch_size", "tries", "rounds")
_RATES = ("anchor_lr", "outer_lr", "lr", "radius_lr")


@dataclass(frozen=True)
class Config:
    """The full run."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each a split, an anchor and orders of its own
    styles: tuple[int, ...] = (0, 1, 2)  # styles fine-tuned on; the next one is the other, the third is unseen
    pretrain_items: int = 300  # of the anchor, in all styles
    anchor_steps: int = 60  # of the anchor's training
    anchor_lr: float = 1e-3  # of the anchor's training; falls as a cosine
    held_out: float = 0.4  # share of the fine-tune items that are held out, in the own and in the other style
    steps: int = 30  # of a fine-tuning
    batch_size: int = 64  # pictures in a step
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # tried for AdamW, FTP and the grid; fall as a cosine
    radius_lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # of the grid
    kappas: tuple[float, ...] = (1.0, 0.5, 0.0)  # of the grid
    tries: int = 40  # points that the random search draws, in the ranges of the grid
    rounds: int = 10  # outer steps of bilevel, each a fine-tuning and its hypergradient
    outer_lr: float = 0.5  # of Adam (betas 0.5, 0.99) on log lr, log radius_lr and logit kappa; falls as a cosine
    lr: float = 1e-3  # where bilevel begins
    radius_lr: float = 1e-2  # where bilevel begins: FTP's default
    kappa: float = 0.9  # where bilevel begins: near FTP's default, 1, which has no logit
    wise: float = 0.5  # share of the anchor in WiSE-FT

    def check(self) -> None:
        for name in _COUNTS:
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{option(name)} {value}: must be an integer of at least 1")
        if self.pretrain_items < 24:
            raise InputError(f"--pretrain-items {self.pretrain_items}: must be at least 24, three of each class")
        for name in _RATES:
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise InputError(f"{option(name)} {value}: must be a number above 0")
        for name in ("lrs", "radius_lrs"):
            values = getattr(self, name)
            if len(set(values)) < max(2, len(values)) or not all(math.isfinite(x) and x > 0 for x in values):
                raise InputError(f"{option(name)} {_joined(values)}: give at least two different numbers above 0")
        if len(set(self.kappas)) < max(2, len(self.kappas)) or not all(0 <= x <= 1 for x in self.kappas):
            raise InputError(f"--kappas {_joined(self.kappas)}: give at least two different numbers from 0 to 1")
        if not self.styles or len(set(self.styles)) < len(self.styles) or not set(self.styles) <= {0, 1, 2}:
            raise InputError(f"--styles {_joined(self.styles)}: give any of 0, 1, 2, each once")
        for name in ("kappa", "held_out"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InputError(f"{option(name)} {value}: must lie between 0 and 1, both excluded")
        if not 0 <= self.wise <= 1:
            raise InputError(f"--wise {self.wise}: must lie between 0 and 1")


def _joined(values: tuple[float, ...]) -> str:
    return " ".join(map(str, values))


FAST = Config(
    seeds=(0,), styles=(0,), lrs=(3e-4, 1e-3, 3e-3), radius_lrs=(3e-3, 3e-2, 3e-1), kappas=(1.0, 0.0), tries=12,
    rounds=5,
)  # fmt: skip
