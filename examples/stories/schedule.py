"""Tune a whole learning-rate schedule by its gradient: a rate for each of 20 steps, through all of them.

Tuning sees training and validation digits. The result is compared, on test digits and new networks, with the first
schedule, and with a random search over that schedule's four numbers for about the same time.
Run: python -m examples.stories.schedule FOLDER
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.estimate import estimate
from experiments.common.figures import curves, mean_curve
from hyperopt_ftp import schedules
from hyperopt_ftp.hyper import Record

from .folder import tell
from .side_by_side import NETWORKS, STEPS, TEST, VALIDATION, after, batches, held_out, loss, networks, sgd

ENDS = ((0.03, 3.0), (0.02, 0.5), (0.02, 2.0), (0.01, 1.0))  # of what is searched: the arguments of `written`

T = TypeVar("T")


def written(peak: float = 0.1, share: float = 0.1, start: float = 0.1, floor: float = 0.1) -> Tensor:
    """The rate of each step as people write it down: a warm-up, then half a cosine."""
    shape = schedules.warm_up(schedules.cosine(STEPS, floor=floor), share=share, start=start)
    return peak * shape.factor(torch.arange(STEPS), shape.hparams)


def tune(seed: int, rounds: int) -> list[Record]:
    """Each round trains new networks, and moves all rates along the gradient of their validation loss."""
    by = hft.scheduled(hft.adam(lr=0.15), lr=schedules.cosine(rounds))
    run = hft.bilevel(
        sgd(written()), by, "lr", loss, held_out, networks(seed), batches(STEPS * rounds, seed), [VALIDATION],
        inner_steps=STEPS, outer_steps=rounds, constrain={"lr": "log"}, reset=lambda t: networks(seed + t),
    )  # fmt: skip
    return list(run)


def search(seed: int, trials: int) -> Tensor:
    """The best of so many schedules by validation loss, all of them tried on the same networks and batches."""
    low, high = torch.tensor(ENDS, dtype=torch.float64).log().T
    places = torch.rand(trials, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tried = [written(*row) for row in torch.lerp(low, high, places).exp().tolist()]
    return min(tried, key=lambda rates: after(rates, VALIDATION, seed))


def timed(work: Callable[[], list[T]]) -> tuple[list[T], float]:
    begin = time.process_time()
    return work(), time.process_time() - begin


def main(folder: Path, rounds: int = 40, runs: int = 3, tests: int = 4) -> dict[str, list[float]]:
    seeds, trials, fresh = [1000 * run for run in range(1, runs + 1)], 3 * rounds, range(10**6, 10**6 + tests)
    tunings, slow = timed(lambda: [tune(seed, rounds) for seed in seeds])
    searched, quick = timed(lambda: [search(seed, trials) for seed in seeds])
    tuned, gradient = [run[-1].tuned["lr"] for run in tunings], "bilevel, Unroll"
    rates = {"default": [written()], "random search": searched, gradient: tuned}
    cost = {"random search": f"{trials} trainings, {quick / runs:.0f} s of a processor"}
    cost |= {gradient: f"{rounds} hypergradients, {slow / runs:.0f} s"}
    scores = {name: [sum(after(r, TEST, t) for t in fresh) / tests for r in found] for name, found in rates.items()}
    print(f"test loss after {STEPS} steps, mean of {tests * NETWORKS} new networks, ± standard error of {runs} runs")
    for name, found in scores.items():
        mean, error = estimate(found)
        print(f"{name:>15} {mean:.3f} {f'± {error:.3f}' if error else '':7}   {cost.get(name, '')}".rstrip())
    print(f"rates, {gradient}:", *(f"{rate:.2f}" for rate in torch.stack(tuned).mean(0).tolist()))
    lines = {name: mean_curve(range(1, STEPS + 1), [r.tolist() for r in found]) for name, found in rates.items()}
    curves(folder / "schedule.png", {"The schedule": lines}, "step", "learning rate", ticks=(1, 5, 10, 15, 20))
    by_round = {
        "validation digits, which tuning sees": [[record.value for record in run] for run in tunings],
        "test digits": [[held_out(record.state.params, TEST).item() for record in run] for run in tunings],
    }
    lines = {name: mean_curve(range(1, rounds + 1), values) for name, values in by_round.items()}
    curves(folder / "tuning.png", {"Loss after a training, by bilevel": lines}, "round of tuning", "held-out loss")
    return scores


if __name__ == "__main__":
    tell(main)
