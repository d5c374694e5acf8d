"""Options of the comparison of searches and hypergradients."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names
from experiments.tuning.search.contenders import CONTENDERS, PROBLEMS


@dataclass(frozen=True)
class Config:
    """Every contender has the same seconds of wall time."""

    seeds: tuple[int, ...] = (0, 1, 2)  # a seed is a split, initial weights, an order of batches, and draws
    problems: tuple[str, ...] = tuple(PROBLEMS)  # what is tuned
    contenders: tuple[str, ...] = tuple(CONTENDERS)  # by what; each only where it makes sense, `default` always
    seconds: float = 4.0  # of each contender, on digits and tweets; emoji, where a step takes longer, have their own

    def check(self) -> None:
        check_names("problems", self.problems, PROBLEMS)
        check_names("contenders", self.contenders, CONTENDERS)
        check_fields(self)
        if "default" not in self.contenders:
            raise InputError("--contenders: default has to be among them, since gains are over it")
