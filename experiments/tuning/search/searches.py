"""Contenders that know losses alone."""

import math
from collections.abc import Iterator, Mapping

import optuna
import torch

from experiments.common.small_networks import stretches
from experiments.tuning.search.problem import Box, Problem, Trial, Values
from experiments.tuning.search.race import Clock

RUNGS = (1 / 27, 1 / 9, 1 / 3, 1.0)  # parts of a training after which Hyperband looks
WORST = 1e6  # a loss for what diverged: Optuna takes no NaN


def default(problem: Problem, clock: Clock) -> Iterator[Trial]:
    yield problem.train(problem.default)


def random(problem: Problem, clock: Clock) -> Iterator[Trial]:
    """The few numbers, independently from their ranges."""
    yield problem.train(problem.default)
    generator = problem.generator()
    while True:
        yield problem.train(problem.few.draw(generator))


def random_all(problem: Problem, clock: Clock) -> Iterator[Trial]:
    """Every single number, independently from its range."""
    yield problem.train(problem.default)
    generator = problem.generator()
    while True:
        yield problem.train({path: knob.draw(generator) for path, knob in problem.space.items()})


def tpe(problem: Problem, clock: Clock) -> Iterator[Trial]:
    yield problem.train(problem.default)
    study = _study(problem, optuna.pruners.NopPruner())
    while True:
        asked = study.ask()
        trial = problem.train(problem.few.expand(_suggested(problem.few, asked)))
        study.tell(asked, _finite(trial.loss))
        yield trial


def hyperband(problem: Problem, clock: Clock) -> Iterator[Trial]:
    """Hyperband's pruner on TPE, as Optuna recommends; what it stops early is no trial."""
    yield problem.train(problem.default)
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=27, reduction_factor=3)
    study = _study(problem, pruner)
    while not clock.over:
        asked = study.ask()
        trial = _unless_pruned(problem, problem.few.expand(_suggested(problem.few, asked)), asked)
        if trial is None:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, _finite(trial.loss))
            yield trial


def _unless_pruned(problem: Problem, values: Values, asked: optuna.trial.Trial) -> Trial | None:
    stops: list[int] = []
    for rung in RUNGS:
        stops.append(max(stops[-1] + 1 if stops else 1, round(rung * problem.steps)))
    ways = stretches(
        problem.optimizer, problem.train_loss, problem.params, problem.batches, stops, problem.hparams(values)
    )
    trial = None
    for rung, (_, params) in zip(RUNGS, ways, strict=True):
        trial = problem.trial(params, values)
        asked.report(_finite(trial.loss), round(27 * rung))
        if rung < 1 and asked.should_prune():
            return None
    return trial


def _study(problem: Problem, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Hyperband assigns its brackets by the name, which is random if none is given.
    name, sampler = f"seed{problem.seed}", optuna.samplers.TPESampler(seed=problem.seed)
    return optuna.create_study(study_name=name, sampler=sampler, pruner=pruner)


def _suggested(box: Box, asked: optuna.trial.Trial) -> Mapping[str, torch.Tensor]:
    return {
        name: knob.natural(torch.tensor(asked.suggest_float(name, *knob.free_range)))
        for name, knob in box.knobs.items()
    }


def _finite(loss: float) -> float:
    return min(loss, WORST) if math.isfinite(loss) else WORST
