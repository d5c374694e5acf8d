"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import NamedTuple

from experiments.common.errors import InputError
from experiments.common.options import check_fields


class Knobs(NamedTuple):
    """What is tuned of FTP around AdamW."""

    lr: float
    radius_lr: float
    kappa: float


START = Knobs(lr=1e-3, radius_lr=1e-2, kappa=0.9)  # of bilevel: FTP's defaults, but for kappa, 1, which has no logit
OUTER_LR = 0.5  # of Adam (betas 0.5, 0.99) on log lr, log radius_lr and logit kappa; falls as a cosine
ANCHOR_LR = 1e-3  # of the anchor's training; falls as a cosine
HELD_OUT = 0.4  # share of the fine-tune items that are held out, in the own and in the other style
WISE = 0.5  # share of the anchor in WiSE-FT
LOWEST, HIGHEST = Knobs(1e-4, 3e-3, 0.0), Knobs(1e-2, 3e-1, 1.0)  # between which the random search draws


@dataclass(frozen=True)
class Config:
    """The full run."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each a split, an anchor and orders of its own
    styles: tuple[int, ...] = (0, 1, 2)  # styles fine-tuned on; the next one is the other, the third is unseen
    pretrain_items: int = 300  # of the anchor, in all styles
    anchor_steps: int = 60  # of the anchor's training
    steps: int = 30  # of a fine-tuning
    batch_size: int = 64  # pictures in a step
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # tried for AdamW and FTP; fall as a cosine
    tries: int = 40  # points that the random search draws
    rounds: int = 10  # outer steps of bilevel, each a fine-tuning and its hypergradient

    def check(self) -> None:
        check_fields(self, pretrain_items=24, styles=0)  # three items of each class
        if max(self.styles) > 2:
            raise InputError(f"--styles {' '.join(map(str, self.styles))}: there are 0, 1 and 2")
