"""Options of the comparison of searches and hypergradients."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import option
from experiments.tuning.search.contenders import BUDGETS, CONTENDERS, PROBLEMS


@dataclass(frozen=True)
class Config:
    """Every contender has the same seconds of wall time."""

    seeds: tuple[int, ...] = (0, 1, 2)  # a seed is a split, initial weights, an order of batches, and draws
    problems: tuple[str, ...] = tuple(PROBLEMS)  # what is tuned
    contenders: tuple[str, ...] = tuple(CONTENDERS)  # by what; each only where it makes sense, `default` always
    seconds: float = 4.0  # of each contender, on digits and tweets
    emoji_seconds: float = 7.0  # the same on emoji, where a step takes longer
    network_seconds: float = 28.0  # the same where all of the emoji network is trained

    def check(self) -> None:
        for name, given, known in (
            ("problems", self.problems, PROBLEMS),
            ("contenders", self.contenders, CONTENDERS),
        ):
            if unknown := [x for x in given if x not in known]:
                raise InputError(f"--{name} {' '.join(unknown)}: there are {', '.join(known)}")
            if not given or len(set(given)) < len(given):
                raise InputError(f"--{name} {' '.join(given)}: give different names, at least one")
        if "default" not in self.contenders:
            raise InputError("--contenders: default has to be among them, since gains are over it")
        for field in sorted(set(BUDGETS.values())):
            if not 0 < getattr(self, field) < float("inf"):
                raise InputError(f"{option(field)} {getattr(self, field)}: must be a finite number above 0")

    def budget(self, problem: str) -> float:
        return getattr(self, BUDGETS[PROBLEMS[problem].data])

    def on(self, problem: str) -> list[str]:
        """The contenders of a problem."""
        return [name for name in self.contenders if name in PROBLEMS[problem].contenders]
