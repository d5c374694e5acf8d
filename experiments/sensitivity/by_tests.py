"""TEMPORARY. Runs that kept no answers, those of three splits: a rate is chosen by the mean ID score on the tests. This
file, its tests and what asks for it in study.py and summary.py go when docs/studies has the runs of five splits."""

from experiments.common.estimate import Estimate, interval
from experiments.common.report_kit import Table, fixed
from experiments.sensitivity import summary
from experiments.sensitivity.summary import AS_GOOD, Scores, mean_of, scores_of

WITHIN = 10.0  # the width of the window around the best rate: a factor of its root each way
ENOUGH = 0.5  # points below AdamW's best, within which a method learns as much
SETTING = (
    "Warm-up is a fifth of the steps; WiSE-FT is half the anchor; exact, share is FTP with the exact gradient and a "
    "radius_lr of 0.2 times row width times learning rate. The best rate of a method is that with the highest mean ID "
    "on the tests, for all alike, WiSE-FT too. Differences are to AdamW at its best rate, split by split, with 95 % "
    "intervals by Student's t; splits of one pool overlap, so these are too narrow. Ahead: the probability, by the "
    "same t, that the method's mean is above AdamW's. OOD at equal ID: at the rate with the highest OOD, on the tests, "
    f"among those at which the method's mean ID is at most {ENOUGH:g} points below AdamW's best: a maximum over few or "
    f"many rates. Near: at most a factor of {WITHIN**0.5:.1f} from the method's best rate, on one side alone where "
    f"that is an end of the grid. Good rates: neither score more than {AS_GOOD:g} points below AdamW's at its best "
    "rate."
)

STARTS = {
    "styles": "Emoji in one style, tested there (ID) and in others (OOD), from an anchor trained on all styles",
    "imagenet": "Emoji in one style, tested there (ID) and in others (OOD), from ImageNet's weights and a new head",
    "topics": "Tweets on one topic, tested there (ID) and on others (OOD), from a MiniLM trained on all topics",
    "minilm": "Tweets on one topic, tested there (ID) and on others (OOD), from MiniLM as it comes and a new head",
    "cells": "Monocrystalline solar cells, tested on others (ID) and on polycrystalline ones (OOD), from ImageNet's "
    "weights and a new head",
    "opinions": "Opinions about films, tested on others (ID) and in newspapers, tweets and about products (OOD), from "
    "MiniLM as it comes and a new head",
}


def about(content: dict) -> str:
    """What was tested."""
    data = content["data"]
    tests = data["items"]["test"] if "items" in data else sum(n for name, n in data["tweets"].items() if "test" in name)
    splits = ", ".join(map(str, content["config"]["seeds"]))
    return (
        f"{STARTS[content['config']['anchor']]}: {data['metric']} in %, means over splits {splits} of one pool, with "
        f"{tests} test items each."
    )


def best_rate(scores: Scores, method: str) -> float:
    return max(scores[method], key=lambda lr: mean_of(scores, method, lr, "id"))


def choices(content: dict) -> dict[str, dict]:
    scores, found = scores_of(content), {}
    for method in scores:
        best = best_rate(scores, method)
        own = {which: [split[which] for split in scores[method][best]] for which in ("id", "ood")}
        found[method] = {"settings": [(best, None)], **own}
    return found


def minus_adamw(scores: Scores, method: str, lr: float, which: str) -> Estimate:
    plain = scores["adamw"][best_rate(scores, "adamw")]
    return interval([own[which] - other[which] for own, other in zip(scores[method][lr], plain, strict=True)])


def worst(scores: Scores, method: str, which: str) -> Estimate:
    """Minus AdamW's best, at the worst of the rates near the best."""
    best = best_rate(scores, method)
    near = [lr for lr in scores[method] if max(lr / best, best / lr) <= WITHIN**0.5]
    return min((minus_adamw(scores, method, lr, which) for lr in near), key=lambda difference: difference[0])


def at_equal_id(scores: Scores, method: str) -> float | None:
    """Of the rates at which a method learns as much as AdamW at its best, that with the highest mean out of it."""
    level = mean_of(scores, "adamw", best_rate(scores, "adamw"), "id") - ENOUGH
    enough = [lr for lr in scores[method] if mean_of(scores, method, lr, "id") >= level]
    return max(enough, key=lambda lr: mean_of(scores, method, lr, "ood"), default=None)


def table(content: dict) -> Table:
    """With what was chosen by the tests."""
    scores = scores_of(content)
    header, rows = summary.table(content)
    for method, row in zip(scores, rows, strict=True):
        equal = at_equal_id(scores, method)
        at_equal = "none" if equal is None else fixed(minus_adamw(scores, method, equal, "ood"), signed=True)
        row[-1:-1] = [at_equal, *(fixed(worst(scores, method, which), signed=True) for which in ("id", "ood"))]
    return [*header[:-1], "OOD at equal ID", "worst near, ID", "worst near, OOD", header[-1]], rows
