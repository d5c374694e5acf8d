"""`python -m experiments.sensitivity`: the study and its command."""

from collections.abc import Callable, Mapping
from functools import partial

from experiments.common.estimate import estimate
from experiments.common.figures import curves, mean_curve
from experiments.common.methods import title
from experiments.common.record import RunRecord
from experiments.common.report_kit import fixed, write
from experiments.common.score_figures import trade_off
from experiments.common.study import Study
from experiments.sensitivity.summary import (
    AS_GOOD,
    ENOUGH,
    WITHIN,
    all_scores,
    best_rate,
    in_brief,
    minus_adamw,
    scores_of,
    table,
)
from experiments.sensitivity.task import Config, Splits

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


def pieces(config: Config, data: Splits) -> Mapping[str, Callable[[], dict]]:
    """One training each."""

    def scored(seed: int, method: str, lr: float) -> dict:
        return {"lr": lr, "seed": seed, "scores": data.scores(seed, method, lr)}

    return {
        f"split {seed}, {method}, lr {lr:g}": partial(scored, seed, method, lr)
        for seed in config.seeds
        for method in config.methods
        for lr in config.rates(method)
    }


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    tests = data["items"]["test"] if "items" in data else sum(n for name, n in data["tweets"].items() if "test" in name)
    return (
        f"{STARTS[config['anchor']]}: {data['metric']} in %, means over splits "
        f"{', '.join(map(str, config['seeds']))} of one pool, with {tests} test items each. Each split has its own "
        f"order and augmentation{', and its own anchor' if data['anchors'] else ''}. Every method is trained at every "
        f"one of {len(config['lrs'])} learning rates (the probe at ten times these), which fall to 0 as cosines, "
        f"without weight decay: {len(content['results'])} trainings, all of them below. Warm-up is a fifth of the "
        "steps; WiSE-FT is half the anchor; exact, share is FTP with the exact gradient and a radius_lr of 0.2 times "
        "row width times learning rate. The best rate of a method is that with the highest mean ID on the tests, for "
        "all alike, WiSE-FT too. Differences are to AdamW at its best rate, split by split, with 95 % intervals by "
        "Student's t; splits of one pool overlap, so these are too narrow. Ahead: the probability, by the same t, that "
        "the method's mean is above AdamW's. OOD at equal ID: at the rate with the highest OOD, on the tests, among "
        "those at which the method's mean ID is at most "
        f"{ENOUGH:g} points below AdamW's best: a maximum over few or many rates. Near: at most a factor "
        f"of {WITHIN**0.5:.1f} from the method's best rate, on one side alone where that is an end of the grid. Good "
        f"rates: neither score more than {AS_GOOD:g} points below AdamW's at its best rate."
    )


def _anchors(content: dict) -> str | None:
    """What the anchors score where they have a head."""
    anchors = content["data"]["anchors"]
    means = [fixed(estimate([anchor[which] for anchor in anchors])) for which in ("id", "ood") if anchors]
    return f"The anchors, not fine-tuned: {' / '.join(means)}." if means else None


def write_report(record: RunRecord) -> None:
    """report.md and its figure."""
    content, folder = record.content, record.folder
    metric, scores = content["data"]["metric"], scores_of(content)
    panels = {}
    for which, name in (("id", "in distribution"), ("ood", "out of distribution")):
        panels[name] = {}
        for method, by_rate in scores.items():
            lrs = sorted(by_rate)
            by_split = zip(*([split[which] for split in by_rate[lr]] for lr in lrs), strict=True)
            panels[name][title(method)] = mean_curve(lrs, list(by_split))
    curves(folder / "rates.png", panels, "learning rate", f"{metric} (%)", log_x=True)
    points = {}
    for method in scores:
        best = best_rate(scores, method)
        points[title(method)] = (minus_adamw(scores, method, best, "id"), minus_adamw(scores, method, best, "ood"))
    axes = (f"in distribution, {metric} minus AdamW's", f"out of distribution, {metric} minus AdamW's")
    trade_off(folder / "trade-off.png", points, axes)
    write(
        record,
        "Scores over the learning rate",
        setting(content),
        _anchors(content),
        table(content),
        "![Scores by learning rate, mean and standard error over splits](rates.png)",
        "![Every method at its best rate minus AdamW at its own, with 95 % intervals over splits](trade-off.png)",
        "Means by learning rate, ID / OOD:",
        all_scores(content),
    )


STUDY = Study(
    name="sensitivity",
    prog="experiments.sensitivity",
    about=(
        "Fine-tune by AdamW, with and without warm-up, and by FTPAdamW at eight learning rates: how good is each at "
        "its best rate, and how much is lost near it? Stop it at any time; the same command goes on from there."
    ),
    config=Config,
    fast=Config(anchor="imagenet", methods=("adamw", "ftp"), lrs=(2e-4, 2e-3), seeds=(0,), epochs=2),
    load=Splits,
    pieces=pieces,
    report=write_report,
    table=in_brief,
)
main = STUDY.main
