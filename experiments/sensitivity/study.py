"""`python -m experiments.sensitivity`: the study and its command."""

from collections.abc import Callable, Mapping
from functools import partial

from experiments.common.estimate import estimate
from experiments.common.figures import curves, mean_curve
from experiments.common.methods import FASTER, FOLLOWS, METHODS, title
from experiments.common.record import RunRecord
from experiments.common.report_kit import bullets, fixed, write
from experiments.common.score_figures import trade_off
from experiments.common.study import Study
from experiments.sensitivity.protocol import FOLDS, RESAMPLES
from experiments.sensitivity.summary import (
    AS_GOOD,
    all_scores,
    by_test,
    choices,
    groups_of,
    in_brief,
    scores_of,
    table,
    widest,
)
from experiments.sensitivity.task import Config, Splits

STARTS = {
    "styles": "Emoji, from an anchor trained on all styles but Fluent",
    "imagenet": "Emoji, from ImageNet's weights and a new head",
    "topics": "Tweets, from a MiniLM trained on all topics",
    "minilm": "Tweets, from MiniLM as it comes and a new head",
    "cells": "Solar cells, working or defective, from ImageNet's weights and a new head",
    "drawn": "Shapes in colours, drawn at random, from ImageNet's weights and a new head",
    "opinions": "Opinions, from MiniLM as it comes and a new head",
    "segmentation styles": "Scenes of emoji, from a network trained on scenes of other emoji in all styles",
    "segmentation imagenet": "Scenes of emoji, from ImageNet's encoder and a new decoder",
}
PROTOCOL = (
    f"The groups of the test in distribution (an emoji is one in all its styles, else an example) are cut into {FOLDS} "
    "folds. A fold is scored at the rate, and the share of the fine-tuned weights where there are several, with the "
    "best mean ID over the splits on the other folds; OOD is the mean over the folds' choices. So no score is of an "
    "example that chose its rate. Differences are to AdamW, chosen alike, with two 95 % intervals: by Student's t over "
    f"the splits, which overlap; and, by groups, by {RESAMPLES:,} resamples of the groups, with new choices in each. "
    "Equal grids: AdamW has its usual rates alone, without those between them. "
    "Above: the probability, by the same t, that the method's mean is above AdamW's. Within 5 points, at the share "
    f"that stands first: neither score more than {AS_GOOD:g} points below AdamW's. Numbers behind a method are its "
    "shares, or its strength."
)


def pieces(config: Config, data: Splits) -> Mapping[str, Callable[[], dict]]:
    """One training each."""

    def scored(seed: int, method: str, lr: float) -> dict:
        return {"lr": lr, "seed": seed, "answers": data.answers(seed, method, lr)}

    return {
        f"split {seed}, {method}, lr {lr:g}": partial(scored, seed, method, lr)
        for seed in config.seeds
        for method in config.all_methods
        if method not in FOLLOWS
        for lr in config.rates(method)
    }


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    fast = [name for name in FASTER if name in content["summary"]]
    faster = ", ".join("the probe" if name == "linear" else title(name) for name in fast)
    faster = f" ({faster} at ten times these)" if faster else ""
    more = "".join(f", {title(name)} also at {lr:g}" for name, lr in config.get("wider", ()))
    return (
        f"{about(content)} Each split has its own "
        f"order and augmentation{', and its own anchor' if data['anchors'] else ''}. Every method is trained at every "
        f"one of {len(config['lrs'])} learning rates{faster}{more}, which fall "
        f"to 0 as cosines, without weight decay: {len(content['results'])} trainings, all of them below. "
        f"{PROTOCOL}{_priors(content)}"
    )


def about(content: dict, shown: str = "means over splits") -> str:
    """What was tested."""
    config, data, anchor = content["config"], content["data"], content["config"]["anchor"]
    start = STARTS.get(f"{content['experiment']} {anchor}") or STARTS[anchor]
    sizes = {name: len(groups_of(test)) for name, test in next(iter(data["tests"].values())).items()}
    own, *others = (f"{name} ({size})" for name, size in sizes.items())
    return (
        f"{start}.{_few(config)} "
        f"Trained on {next(iter(sizes))}, tested there (ID) and elsewhere (OOD): {own}; "
        f"{', '.join(others)}. Scores are {data['metric']} in %, {shown} "
        f"{', '.join(map(str, config['seeds']))} of one pool."
    )


def _few(config: dict) -> str:
    labels = 100 * config.get("labels", 1)
    return f" Of the examples to fine-tune on {labels:g} % are kept, in so many more passes." if labels < 100 else ""


def _priors(content: dict) -> str:
    """What the sampling hides."""
    shares = {
        name: [100 * n / sum(counts) for n in counts] for name, counts in content["data"].get("priors", {}).items()
    }
    each = "; ".join(f"{name} {' / '.join(f'{share:.0f}' for share in of_class)}" for name, of_class in shares.items())
    said = f" Trainings and tests have as many texts of each class; in the source their shares are, in %: {each}."
    return said if each else ""


def _methods(content: dict) -> str:
    """What each is, at which strength, or with which shares."""
    lines = []
    for name in content["summary"]:
        strengths = METHODS[name].strengths if name in FOLLOWS else METHODS[name].strengths[:1]
        which = f" ({', '.join(f'{strength:g}' for strength in strengths)})" if strengths else ""
        lines.append(f"{title(name)}{which}: {METHODS[name].about}")
    return bullets(lines)


def _anchors(content: dict) -> str | None:
    """What the anchors score where they have a head."""
    anchors = content["data"]["anchors"]
    means = [fixed(estimate([anchor[which] for anchor in anchors])) for which in ("id", "ood") if anchors]
    return f"The anchors, not fine-tuned: {' / '.join(means)}." if means else None


def write_report(record: RunRecord) -> None:
    """report.md and its figure."""
    content, folder = record.content, record.folder
    metric, scores = content["data"]["metric"], scores_of(content)
    summary = content["summary"] = choices(content)
    panels = {}
    for which, name in (("id", "in distribution"), ("ood", "out of distribution")):
        panels[name] = {}
        for method in (method for method in summary if method not in FOLLOWS):
            lrs = sorted(scores[method])
            by_split = zip(*([split[which] for split in scores[method][lr]] for lr in lrs), strict=True)
            panels[name][title(method)] = mean_curve(lrs, list(by_split))
    curves(folder / "rates.png", panels, "learning rate", f"{metric} (%)", log_x=True)
    points = {title(method): (widest(summary, method, "id"), widest(summary, method, "ood")) for method in summary}
    axes = (f"in distribution, {metric} minus AdamW's", f"out of distribution, {metric} minus AdamW's")
    trade_off(folder / "trade-off.png", points, axes)
    write(
        record,
        "Scores over the learning rate",
        setting(content),
        _methods(content),
        _anchors(content),
        table(content),
        by_test(content),
        "![Scores by learning rate, mean and standard error over splits](rates.png)",
        "![Every method at its best rate minus AdamW at its own, with the wider of the two intervals](trade-off.png)",
        "Means by learning rate, ID / OOD:",
        all_scores(content),
    )


STUDY = Study(
    name="sensitivity",
    prog="experiments.sensitivity",
    about=(
        "Fine-tune by AdamW, FTPAdamW and others at several learning rates: how good is each at the rate that it would "
        "choose, and at all others? Stop it at any time; the same command goes on from there."
    ),
    config=Config,
    fast=Config(anchor="imagenet", methods=("adamw", "ftp", "wise"), lrs=(2e-4, 2e-3), seeds=(0,), epochs=2),
    load=Splits,
    pieces=pieces,
    report=write_report,
    table=in_brief,
    grow=("lrs", "wider", "seeds"),
)
main = STUDY.main
