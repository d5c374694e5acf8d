"""`python -m experiments.meta.few_labels`: the study and its command."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from experiments.common.memory import peak_above
from experiments.common.study import Study
from experiments.meta.few_labels.config import Config, Name
from experiments.meta.few_labels.data import Data
from experiments.meta.few_labels.methods import Run, fitted, tested
from experiments.meta.few_labels.report import methods_of, piece, table, write_report
from experiments.meta.few_labels.weights import described


def pieces(config: Config, data: Data) -> Mapping[str, Callable[[], dict]]:
    """One method on one split each."""

    def scored(name: Name, seed: int, labels: int, method: str) -> dict:
        problem = data.problem(name, seed, labels)
        run, begin = Run(problem, config, seed), time.process_time()
        (model, own), memory = peak_above(torch.device("cpu"), lambda: fitted(run, method))
        cost = {"seconds": round(time.process_time() - begin, 1), "memory": round(memory)}
        return {"score": tested(problem, model), **cost, "learned": own and described(problem, model, own)}

    return {
        piece(name, seed, labels, method): partial(scored, name, seed, labels, method)
        for name in config.tasks
        for seed in config.seeds
        for labels in config.all_labels
        for method in methods_of(config.methods, name)
    }


STUDY = Study(
    name="few-labels",
    prog="experiments.meta.few_labels",
    about="Learn a domain from a hundred labels of it and many examples of others: learned weights of the examples "
    "against simple ways. Stop it at any time; the same command goes on from there.",
    config=Config,
    fast=Config(
        tasks=("poly", "wrong emoji"),
        methods=("add", "then_labels", "learned"),
        seeds=(0,),
        steps=20,
        limit=96,
        labels=8,
        counts=(12,),
    ),
    load=Data,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", "optuna"),
    grow=("methods", "counts"),
)
main = STUDY.main
