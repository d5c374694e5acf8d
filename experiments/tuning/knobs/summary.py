"""Means over seeds of what the pieces measured."""

import math
from collections.abc import Callable, Iterable
from statistics import fmean, median

from experiments.common.estimate import Estimate, estimate
from experiments.tuning.knobs.styles import ROLES
from experiments.tuning.knobs.tuning import SOURCES

BASELINE = "ftp"  # what differences are taken from
METRICS = ("accuracy", "loss")
Pick = Callable[[dict], float]


def summarise(content: dict) -> dict:
    """By source and method: estimates by metric and role, and of the differences to FTP's defaults, seed by seed."""
    found: dict[str, dict] = {}
    for source in SOURCES:
        methods = next(iter(content["results"].values()))["sources"][source]["tests"]
        found[source] = {
            method: {
                metric: {
                    role: {
                        "value": estimated(content, _score(source, method, role, number)),
                        "difference": estimated(
                            content,
                            _score(source, method, role, number),
                            minus=_score(source, BASELINE, role, number),
                        ),
                    }
                    for role in ROLES
                }
                for number, metric in enumerate(METRICS)
            }
            for method in methods
        }
    anchor = {
        metric: {role: {"value": estimated(content, lambda r, i=i, role=role: r["anchor"][role][i])} for role in ROLES}
        for i, metric in enumerate(METRICS)
    }
    return {"methods": found, "anchor": anchor, "searches": searches(content), "slopes": slopes(content)}


def _score(source: str, method: str, role: str, number: int) -> Pick:
    def pick(result: dict) -> float:
        return _number(result["sources"][source]["tests"][method]["scores"][role][number])

    return pick


def _number(value: float | None) -> float:
    """None stands for what is not finite."""
    return math.nan if value is None else value


def estimated(content: dict, pick: Pick, minus: Pick | None = None) -> Estimate | None:
    """Mean over the styles of each seed, then over the seeds; None where a training diverged."""
    values = [
        fmean(pick(result) - (minus(result) if minus else 0.0) for result in of_seed(content, seed))
        for seed in content["config"]["seeds"]
    ]
    return estimate(values) if all(map(math.isfinite, values)) else None


def of_seed(content: dict, seed: int) -> list[dict]:
    """Results of all styles."""
    return [result for result in content["results"].values() if result["seed"] == seed]


def searches(content: dict) -> dict[str, dict]:
    """Trainings and seconds of one search, means over everything, and the held-out losses that it reached."""
    config, results = content["config"], list(content["results"].values())
    ways = [result["sources"][source]["bilevel"]["seconds"] for result in results for source in SOURCES]
    found = {
        method: (len(config["lrs"]), fmean(result["rates"][method]["seconds"] for result in results))
        for method in results[0]["rates"]
    }
    for method in results[0]["searches"]:
        own = [result["searches"][method] for result in results]
        found[method] = (len(own[0]["losses"]), fmean(search["seconds"] for search in own))
    found["bilevel"] = (config["rounds"], fmean(ways))
    return {
        method: {
            "trainings": trainings,
            "seconds": seconds,
            "held_out": {source: estimated(content, _reached(source, method)) for source in SOURCES},
        }
        for method, (trainings, seconds) in found.items()
    }


def _reached(source: str, method: str) -> Pick:
    return lambda result: _number(result["sources"][source]["held_out"][method])


def slopes(content: dict) -> dict[str, list[float | None]]:
    """Medians of |d loss / d log lr|, |d loss / d log radius_lr|, |d loss / d logit kappa| on bilevel's way."""
    found = {}
    for source in SOURCES:
        free: list[list[float]] = [[], [], []]
        for result in content["results"].values():
            way = result["sources"][source]["bilevel"]
            for place, slope in zip(way["way"], way["slopes"], strict=False):
                scale = (place[0], place[1], place[2] * (1 - place[2]))
                for values, h, x in zip(free, slope, scale, strict=True):
                    values += [] if h is None else [abs(h * x)]
        found[source] = [_median(values) for values in free]
    return found


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None
