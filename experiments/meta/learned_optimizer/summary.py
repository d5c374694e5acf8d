"""Means over the seeds, from what the pieces have kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean

from experiments.common.estimate import estimate
from experiments.meta.learned_optimizer.problems import PROBLEMS
from experiments.meta.learned_optimizer.testing import DEFAULT, GRIDS, POINTS, WORST

TITLES = {
    "learned": "learned, Unroll",
    "evolution": "learned, ZeroOrder",
    "adam": "Adam, tuned",
    "cosine": "Adam, cosine, tuned",
    "momentum": "momentum, tuned",
    "one_rate": "Adam, one lr",
    "default": "Adam, default lr",
}


def best_of(scores: list[float]) -> int:
    return min(range(len(scores)), key=scores.__getitem__)


def end_of(losses: list[float]) -> float:
    """The mean of a curve's last tenth: single points go up and down with the batches."""
    return mean(losses[-(len(losses) // 10) :])


def summarise(content: dict) -> dict:
    """By problem and optimizer; and what meta-training and the grids took."""
    config, results = content["config"], content["results"]
    shared = best_of(results["one-rate"]["scores"])
    problems = {name: _problem(name, content, shared) for name in config["problems"]}
    made = [results[f"unroll-seed{seed}"] for seed in config["seeds"]]
    own = results.get(f"evolution-seed{config['seeds'][0]}")
    costs = {"learned": _cost(made)} | ({"evolution": _cost([own])} if own else {})
    usual = [name for name in config["problems"] if not PROBLEMS[name].longer] or config["problems"]
    grids = [results[f"{name}-{kind}"]["seconds"] / len(config["seeds"]) for name in usual for kind in GRIDS]
    return {
        "shared_rate": GRIDS["adam"][shared],
        "shared_score": results["one-rate"]["scores"][shared],
        "problems": problems,
        "costs": costs,
        "grid_seconds": mean(grids),
        "one_rate": {name: results["one-rate"][name] for name in ("seconds", "steps")},
        "meta_loss": {"learned": _checks(made)} | ({"evolution": _checks([own])} if own else {}),
    }


def _problem(name: str, content: dict, shared: int) -> dict:
    """Every optimizer's row and curve."""
    config, results = content["config"], content["results"]
    seeds = config["seeds"]
    steps = config["steps"] * (config["times_longer"] if PROBLEMS[name].longer else 1)
    runs: dict[str, list[Mapping]] = {"learned": [results[f"unroll-seed{seed}"]["tests"][name] for seed in seeds]}
    times = results[f"{name}-seconds"]["seconds"]
    evolution = results.get(f"evolution-seed{seeds[0]}")
    if evolution:
        runs["evolution"] = [evolution["tests"][name]]
    places = {kind: (kind, results[f"{name}-{kind}"]["best"]) for kind in ("adam", "cosine", "momentum")}
    places |= {"one_rate": ("adam", shared), "default": ("adam", GRIDS["adam"].index(DEFAULT))}
    runs |= {row: results[f"{name}-{kind}"]["tests"][str(place)] for row, (kind, place) in places.items()}
    rates = {row: GRIDS[kind][place] for row, (kind, place) in places.items()}
    goal = [end_of(run["losses"]) for run in runs["adam"]]
    as_slow_as = {"evolution": "learned", "one_rate": "adam", "default": "adam"}
    return {
        "steps": steps,
        "edges": [row for row in GRIDS if rates[row] in (GRIDS[row][0], GRIDS[row][-1])],
        "rows": {
            row: _row(found, goal, steps, rates.get(row), times[as_slow_as.get(row, row)])
            for row, found in runs.items()
        },
    }


def _row(runs: list[Mapping], goal: list[float], steps: int, rate: float | None, seconds: float) -> dict:
    ends = [end_of(run["losses"]) for run in runs]
    reached = [first_at(run["losses"], own, steps) for run, own in zip(runs, goal, strict=False)]
    ratios = [math.log(max(end, 1e-12) / max(own, 1e-12)) for end, own in zip(ends, goal, strict=False)]
    by_point = [estimate(list(values)) for values in zip(*(run["losses"] for run in runs), strict=True)]
    return {
        "rate": rate,
        "loss": estimate(ends),
        "ratio": estimate(ratios),  # logarithm of its loss by that of tuned Adam, seed by seed
        "reached": [at for at in reached if at is not None],
        "runs": len(runs),
        "diverged": sum(run["losses"][-1] >= WORST for run in runs),
        "accuracy": estimate([run["accuracy"] for run in runs]),
        "seconds_a_step": seconds,
        "curve": [
            [k * steps // POINTS for k in range(POINTS + 1)],
            *([list(column) for column in zip(*by_point, strict=True)]),
        ],
    }


def first_at(losses: list[float], goal: float, steps: int) -> int | None:
    """The step at which a curve is first down at `goal`, as far as its points tell."""
    place = next((k for k, loss in enumerate(losses) if loss <= goal), None)
    return None if place is None else place * steps // (len(losses) - 1)


def _cost(made: list[dict]) -> dict:
    return {
        "seconds": estimate([run["seconds"] for run in made]),
        "steps": mean(run["steps"] for run in made),
        "skipped": sum(run["skipped"] for run in made),
    }


def _checks(made: list[dict]) -> list[list]:
    """Episodes and seconds that the checks are after, and what they say."""
    episodes = [episode for episode, _ in made[0]["checks"]]
    seconds = [mean(run["check_seconds"][k] for run in made) for k in range(len(episodes))]
    found = [estimate([run["checks"][k][1] for run in made]) for k in range(len(episodes))]
    return [episodes, seconds, *[list(column) for column in zip(*found, strict=True)]]
