"""Contenders that differentiate: through whole trainings, or from step to step of one."""

import math
import warnings
from collections.abc import Iterator

import hyperopt_ftp as hft
from experiments.tuning.search.problem import Problem, Trial, Values
from experiments.tuning.search.race import Clock
from experiments.tuning.search.searches import random
from hyperopt_ftp.hyper import Record, Strategy
from hyperopt_ftp.types import Constraint

RATES = (0.3, 0.1, 0.03)  # of the Adam outside, one after the other: factors of about 1.35, 1.1, 1.03 a step
PATIENCE = 5  # outer steps without a better trial, after which the next rate takes over, from the best trial
ENOUGH = 0.999  # a trial is better where its loss is below this part of the best one's
ONLINE_RATE = 0.03  # of the Adam that moves hyperparameters at every step of a training
TOP_RATE = 0.03  # of the Adam that moves that rate in turn
SEARCHED = 1 / 4  # of the budget, where a search finds the place to descend from


def descents(problem: Problem, clock: Clock, strategy: Strategy, start: Values | None = None) -> Iterator[Trial]:
    """From the default or from `start`, then from one random place after another."""
    generator = problem.generator()
    values = problem.default if start is None else start
    while not clock.over:
        yield from descent(problem, values, strategy)
        values = problem.few.draw(generator)


def descent(problem: Problem, values: Values, strategy: Strategy) -> Iterator[Trial]:
    """Every outer step is a full training from the start, and so a trial."""
    best = Trial(math.inf, problem.params, values)
    for rate in RATES:
        waited = 0
        for trial in path(problem, best.values, rate, strategy):
            yield trial
            waited = 0 if trial.loss < ENOUGH * best.loss else waited + 1
            if trial.loss < best.loss:
                best = trial
            if waited >= PATIENCE or not math.isfinite(trial.loss):
                break
        if not math.isfinite(best.loss):
            return


def path(problem: Problem, values: Values, rate: float, strategy: Strategy) -> Iterator[Trial]:
    records = hft.bilevel(
        problem.optimizer, hft.adam(lr=rate), tuple(problem.space), problem.train_loss, problem.loss, problem.params,
        problem.batches, [problem.validation], inner_steps=problem.steps, outer_steps=10**6, strategy=strategy,
        constrain={path: knob.scale for path, knob in problem.space.items()}, hparams=problem.hparams(values),
        reset=problem.params, not_finite="skip",
    )  # fmt: skip
    for record in unwarned(records):
        yield Trial(record.value, record.state.params, values)
        if record.skipped:
            return
        values = record.tuned


def unwarned(records: Iterator[Record]) -> Iterator[Record]:
    """Implicit warns where training or its solver has not converged, which is part of what is compared here; where the
    solver diverges, the descent is at its end."""
    while True:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Implicit")
            try:
                record = next(records, None)
            except ArithmeticError:
                return
        if record is None:
            return
        yield record


def searched_first(problem: Problem, clock: Clock, strategy: Strategy) -> Iterator[Trial]:
    """A random search over the few numbers, then a descent in all of them from the best that it found."""
    best = None
    for trial in random(problem, clock):
        yield trial
        if best is None or trial.loss < best.loss:
            best = trial
        if clock.seconds > SEARCHED * clock.budget:
            break
    assert best is not None
    yield from descents(problem, clock, strategy, best.values)


def online(problem: Problem, tower: bool = False) -> Iterator[Trial]:
    """One training in which every step moves the hyperparameters; then from one random first value after another."""
    scales: dict[str, Constraint] = {path: knob.scale for path, knob in problem.space.items()}
    by = hft.adam(lr=ONLINE_RATE)
    if tower:
        by = hft.hyper(by, by=hft.adam(lr=TOP_RATE), over="lr", constrain={"lr": "log"})
    tuned = hft.hyper(problem.optimizer, by=by, over=tuple(problem.space), constrain=scales)
    generator = problem.generator()
    values = problem.default
    while True:
        hparams = {"base": problem.hparams(values), "by": tuned.hparams["by"]}
        run = hft.train(tuned, problem.train_loss, problem.params, problem.batches, hparams=hparams)
        yield problem.trial(run.params, run.state.tuned)
        values = problem.few.draw(generator)
