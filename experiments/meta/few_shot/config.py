"""Everything that decides the result of one run."""

import math
from dataclasses import dataclass, fields

from experiments.common.errors import InputError
from experiments.common.frozen import BLOCKS
from experiments.common.options import option

WAYS = 5  # classes of an episode
SMALLEST = 8  # emoji of a class, at least
PAIRS = 6  # of styles: that of the support, that of the query


@dataclass(frozen=True)
class Config:
    """The defaults are the study."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each splits the classes anew, and draws episodes and first weights
    shots: tuple[int, ...] = (1, 3)  # emoji of each class to adapt on; each number is an experiment of its own
    queries: int = 5  # emoji of each class to predict
    episodes: int = 600  # of the test, for each seed
    validation: int = 200  # episodes by which every method's settings are chosen
    meta_steps: int = 300  # steps of the outer optimizer; ordinary pre-training makes twice as many
    tasks: int = 16  # episodes in a meta-step
    inner_steps: int = 5  # of an adaptation in meta-training; of implicit MAML twice as many
    outer_lr: float = 3e-3  # of Adam in meta-training and of AdamW in pre-training; falls to 0 as a cosine
    inputs: int = 64  # principal components of the frozen features
    width: int = 64  # hidden units of the network that is trained
    block: int = 12  # of EfficientNet-Lite0: what goes into it are the frozen features

    def check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{option(field.name)} {value}: must be an integer of at least 1")
        for name in ("episodes", "validation"):
            if getattr(self, name) < PAIRS:
                raise InputError(
                    f"--{name} {getattr(self, name)}: must be at least {PAIRS}, one for each pair of styles"
                )
        if not (math.isfinite(self.outer_lr) and self.outer_lr > 0):
            raise InputError(f"--outer-lr {self.outer_lr}: must be a number above 0")
        if self.block > BLOCKS:
            raise InputError(f"--block {self.block}: the network has the blocks 1 to {BLOCKS}")
        shown = " ".join(map(str, self.shots))
        if not self.shots or len(set(self.shots)) < len(self.shots) or min(self.shots) < 1:
            raise InputError(f"--shots {shown}: give different integers of at least 1")
        if max(self.shots) + self.queries > SMALLEST:
            raise InputError(
                f"--shots {shown} and --queries {self.queries}: the smallest classes have {SMALLEST} emoji, no more "
                "than that can be drawn of one"
            )
