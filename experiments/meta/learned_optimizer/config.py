"""Options of the study of a learned optimizer."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names
from experiments.meta.learned_optimizer.problems import PROBLEMS

HIDDEN = 16  # units of the rule
SEGMENT = 10  # steps that a meta-gradient goes through, and of the longest episode at first
META_LR = 0.003  # of Adam on the rule's weights; a cosine to a tenth
SIGMA = 0.02  # of evolution strategies
POINTS = 40  # of a curve, after its start


@dataclass(frozen=True)
class Config:
    """Sizes and schedules."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each of a meta-training, and of initial weights and order on the test problems
    problems: tuple[str, ...] = tuple(PROBLEMS)  # that optimizers are tested on
    episodes: int = 240  # of meta-training: groups of tasks, one after another
    tasks: int = 4  # of a group, trained at once
    longest: int = 200  # longest episode after half of meta-training, in steps
    evolution_episodes: int = 100  # of meta-training by evolution strategies, with the first seed
    samples: int = 4  # of evolution strategies, in antithetic pairs
    checks: int = 8  # times in meta-training that the rule is tried on held-out meta-training tasks
    steps: int = 200  # on a test problem
    times_longer: int = 5  # than that, on the problem "longer"

    def check(self) -> None:
        check_names("problems", self.problems, PROBLEMS)
        check_fields(self, longest=SEGMENT, times_longer=2)
        if self.checks > self.episodes:
            raise InputError(f"--checks {self.checks}: must be at most --episodes {self.episodes}")
        if self.steps % POINTS:
            raise InputError(f"--steps {self.steps}: must be a multiple of {POINTS}, since losses are taken so often")

    def steps_on(self, problem: str) -> int:
        return self.steps * (self.times_longer if PROBLEMS[problem].longer else 1)
