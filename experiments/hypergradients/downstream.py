"""Fine-tuning with each hypergradient: is it worth what it costs?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.common.bilevel_loop import Radii


@dataclass(frozen=True)
class Way:
    """Either FTPAdamW with a gradient, or radii moved after every K steps by the hypergradient through them."""

    title: str
    gradient: Literal["paper", "exact"] | None = None
    depth: int = 1
    on_validation: bool = False

    def radii(self, radius_lr: float) -> Radii:
        """From the anchor, as FTP; a move in K steps is K times as large, so that radii can grow as fast."""
        return Radii(self.depth, self.on_validation, free_steps=0, radius_lr=self.depth * radius_lr)


WAYS: Mapping[str, Way] = {
    "paper": Way("FTP, paper", gradient="paper"),
    "exact": Way("FTP, exact", gradient="exact"),
    "validation1": Way("one step, validation", on_validation=True),
    "train4": Way("full, K = 4, training", depth=4),
    "validation4": Way("full, K = 4, validation", depth=4, on_validation=True),
    "validation16": Way("full, K = 16, validation", depth=16, on_validation=True),
}
