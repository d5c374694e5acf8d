"""One contender on one problem for so many seconds: the piece that is repeated over problems, contenders and seeds."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hyperopt_ftp as hft
from experiments.tuning.search.problem import Problem, Trial


class Clock:
    """Runs from the moment it is made; stands still while paused. `now` is what a test drives by hand."""

    def __init__(self, budget: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.budget = budget
        self._now = now
        self._start = now()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    @property
    def over(self) -> bool:
        return self.seconds > self.budget

    @contextmanager
    def paused(self) -> Iterator[None]:
        stopped = self._now()
        yield
        self._start += self._now() - stopped


def race(problem: Problem, contender: Callable[[Problem, Clock], Iterator[Trial]], budget: float) -> dict:
    """Every trial that is better on the validation part than all before is tested, while the clock stands still."""
    warm_up(problem)
    gc.collect()
    begin, worked = time.perf_counter(), time.process_time()
    best, trials, curve = math.inf, 0, []
    clock = Clock(budget)
    for trial in contender(problem, clock):
        at = clock.seconds
        if at > budget and trials:  # the first one counts, however long it takes
            break
        trials += 1
        if trial.loss < best:
            with clock.paused():
                loss, accuracy = problem.tested(trial.params)
            best = trial.loss
            curve.append([round(at, 3), round(best, 5), round(loss, 5), round(accuracy, 2)])
    return {
        "curve": curve, "trials": trials, "numbers": problem.size, "steps": problem.steps, "few": problem.few.about,
        # Below 1 another program had the processor for the rest.
        "share_of_processor": round((time.process_time() - worked) / (time.perf_counter() - begin), 3),
    }  # fmt: skip


def warm_up(problem: Problem) -> None:
    """What torch does once, in the first steps of a process, is on nobody's clock."""
    few = problem.batches[:2]
    hft.hypergradient(
        problem.optimizer, problem.train_loss, lambda params: problem.loss(params, problem.validation), problem.params,
        few, tuple(problem.space), problem.hparams(problem.default),
    )  # fmt: skip
    hft.train(problem.optimizer, problem.train_loss, problem.params, few, hparams=problem.hparams(problem.default))
