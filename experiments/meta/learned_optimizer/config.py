"""Options of the study of a learned optimizer."""

import math
from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import option
from experiments.meta.learned_optimizer.problems import PROBLEMS
from experiments.meta.learned_optimizer.testing import POINTS


@dataclass(frozen=True)
class Config:
    """Sizes and schedules."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each of a meta-training, and of initial weights and order on the test problems
    problems: tuple[str, ...] = tuple(PROBLEMS)  # that optimizers are tested on
    hidden: int = 16  # units of the rule
    episodes: int = 240  # of meta-training: groups of tasks, one after another
    tasks: int = 4  # of a group, trained at once
    segment: int = 10  # steps that a meta-gradient goes through
    first_length: int = 10  # longest episode at first, in steps
    longest: int = 200  # longest episode after half of meta-training, in steps
    meta_lr: float = 0.003  # of Adam on the rule's weights; a cosine to a tenth
    evolution_episodes: int = 100  # of meta-training by evolution strategies, with the first seed; 0: none
    samples: int = 4  # of evolution strategies, in antithetic pairs
    sigma: float = 0.02  # of evolution strategies
    checks: int = 8  # times in meta-training that the rule is tried on held-out meta-training tasks
    steps: int = 200  # on a test problem
    times_longer: int = 5  # than that, on the problem "longer"

    def check(self) -> None:
        if unknown := set(self.problems) - PROBLEMS.keys():
            raise InputError(f"--problems {' '.join(sorted(unknown))}: there are {', '.join(PROBLEMS)}")
        if not self.problems:
            raise InputError("--problems: give at least one")
        least = {
            "evolution_episodes": 0,
            "hidden": 1,
            "episodes": 1,
            "tasks": 1,
            "segment": 1,
            "samples": 1,
            "checks": 1,
            "times_longer": 2,
        }
        least |= {"first_length": self.segment, "longest": self.first_length, "steps": POINTS}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be at least {number}")
        for name in ("meta_lr", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be a finite number above 0")
        if self.checks > self.episodes:
            raise InputError(f"--checks {self.checks}: must be at most --episodes {self.episodes}")
        if self.steps % POINTS:
            raise InputError(f"--steps {self.steps}: must be a multiple of {POINTS}, since losses are taken so often")
