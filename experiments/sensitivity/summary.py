"""Scores of every training, those of every method by its chosen settings, and what they say in a few numbers."""

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from experiments.common.estimate import Estimate, chance_above, estimate, interval
from experiments.common.methods import title
from experiments.common.report_kit import Table, fixed
from experiments.common.task import percent_right
from experiments.sensitivity.protocol import Answered, cross_fitted, fold_of, half_width, resampled

AS_GOOD = 5.0  # points below AdamW at its best rate: what a rate that nobody tuned may cost
Scores = Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]  # by method and rate: a "id", "ood" by split


def digits(classes: Tensor) -> str:
    """How a record keeps the classes of examples, of which there are no more than ten."""
    return "".join(map(str, classes.tolist()))


def classes_of(digits: str) -> Tensor:
    return torch.tensor(list(map(int, digits)))


def named(method: str, share: float | None) -> str:
    """Of what a method makes with a share, where it has several."""
    return method if share is None else f"{method} {share:g}"


def row_title(name: str) -> str:
    method, _, share = name.partition(" ")
    return f"{title(method)}, {share}" if share else title(method)


def scores_of(content: dict) -> dict[str, dict[float, list[dict[str, float]]]]:
    """By name and rate, one for each split; what is made of a training's weights stands beside it."""
    found: dict[str, dict[float, list[dict[str, float]]]] = {}
    for result in content["results"].values():
        for name, own in _scored(result, content["data"]).items():
            found.setdefault(name, {}).setdefault(result["lr"], []).append(own)
    return found


def _scored(result: dict, data: dict) -> dict[str, dict[str, float]]:
    truth = {name: classes_of(test["classes"]) for name, test in data["tests"][str(result["seed"])].items()}
    found = {}
    for name, answers in result["answers"].items():
        own, *others = (percent_right(classes_of(answers[test]), truth[test], data["by_class"]) for test in truth)
        found[name] = {"id": own, "ood": mean(others)}
    return found


def mean_of(scores: Scores, name: str, lr: float, which: str) -> float:
    return estimate([split[which] for split in scores[name][lr]])[0]


def choices(content: dict) -> dict[str, dict]:
    """By method: the settings of the folds, each a rate and a share; the scores by split; and half of the interval of
    their mean minus AdamW's, by groups."""
    data = content["data"]
    tests, seeds = data["tests"], list(data["tests"])
    groups = sorted({group for sets in tests.values() for test in sets.values() for group in test["groups"].split(",")})
    place = {group: number for number, group in enumerate(groups)}
    folds, counts = np.array([fold_of(group) for group in groups]), resampled(len(groups))
    answers: dict[str, dict[tuple, dict[str, dict]]] = {}
    for result in content["results"].values():
        for name, given in result["answers"].items():
            method, _, share = name.partition(" ")
            setting = (result["lr"], float(share) if share else None)
            answers.setdefault(method, {}).setdefault(setting, {})[str(result["seed"])] = given

    def answered(method: str, seed: str, name: str) -> Answered:
        truth = classes_of(tests[seed][name]["classes"])
        given = [classes_of(answers[method][setting][seed][name]) for setting in sorted(answers[method])]
        right = (torch.stack(given) == truth).double().numpy()
        classes = truth.numpy() if data["by_class"] else np.zeros(len(truth))
        return Answered(right, classes, np.array([place[group] for group in tests[seed][name]["groups"].split(",")]))

    found, drawn = {}, {}
    for method in answers:
        own, *others = tests[seeds[0]]
        ids = [answered(method, seed, own) for seed in seeds]
        oods = [[answered(method, seed, name) for name in others] for seed in seeds]
        once = cross_fitted(ids, oods, folds, np.ones((1, len(groups))))
        drawn[method] = cross_fitted(ids, oods, folds, counts)
        settings = [sorted(answers[method])[number] for number in once.chosen[0]]
        out = {name: once.ood[0, :, number].tolist() for number, name in enumerate(others)}
        found[method] = {"settings": settings, "id": once.id[0].tolist(), "ood": once.ood[0].mean(-1).tolist(), **out}
    for method, one in drawn.items():
        plain = drawn["adamw"]
        both = {"id": one.id - plain.id, "ood": (one.ood - plain.ood).mean(-1)}
        found[method]["by_groups"] = {which: half_width(minus.mean(1)) for which, minus in both.items()}
    return found


def minus_adamw(summary: dict, method: str, which: str) -> list[float]:
    """Split by split."""
    return [own - plain for own, plain in zip(summary[method][which], summary["adamw"][which], strict=True)]


def widest(summary: dict, method: str, which: str) -> Estimate:
    """The mean of these, and half of the wider of its intervals."""
    middle, half = interval(minus_adamw(summary, method, which))
    by_groups = summary[method]["by_groups"][which]
    return middle, by_groups if half is None else max(half, by_groups)


def good(scores: Scores, name: str, summary: dict) -> list[float]:
    """The rates at which neither score is more than AS_GOOD below AdamW's."""
    level = {which: mean(summary["adamw"][which]) - AS_GOOD for which in ("id", "ood")}
    lrs = sorted(scores[name])
    return [lr for lr in lrs if all(mean_of(scores, name, lr, which) >= level[which] for which in level)]


def span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def table(content: dict) -> Table:
    """A row for each method."""
    scores, summary = scores_of(content), content["summary"]
    header, rows = ["method", "best rate", "ID / OOD"], []
    for which in ("ID", "OOD"):
        header += [f"minus AdamW, {which}", "by groups", "ahead"]
    for method, own in summary.items():
        name = next(name for name in scores if name.partition(" ")[0] == method)
        lrs = sorted(scores[name])
        rates, shares = zip(*own["settings"], strict=True)
        rate = span(rates) + (" (edge)" if {*rates} & {lrs[0], lrs[-1]} else "")
        row = [title(method), rate if shares[0] is None else f"{rate}, share {span(shares)}"]
        row.append(" / ".join(f"{mean(own[which]):.1f}" for which in ("id", "ood")))
        for which in ("id", "ood"):
            differences = minus_adamw(summary, method, which)
            chance = chance_above(differences)
            row.append(fixed(interval(differences), signed=True))
            row.append(f"± {own['by_groups'][which]:.1f}")
            row.append("" if chance is None else f"{100 * chance:.0f} %")
        of_use = good(scores, name, summary)
        rows.append([*row, span(of_use) if of_use else "none"])
    return [*header, "good rates"], rows


def by_test(content: dict) -> Table:
    """Each test out of distribution by itself."""
    summary, others = content["summary"], list(next(iter(content["data"]["tests"].values())))[1:]
    cells = [
        [fixed(interval(minus_adamw(summary, method, name)), signed=True) for name in others] for method in summary
    ]
    return ["minus AdamW", *others], [[title(method), *row] for method, row in zip(summary, cells, strict=True)]


def in_brief(content: dict) -> Table:
    """What a terminal has room for."""
    header, rows = table(content)
    brief = [[row[column] for column in (0, 1, 2, 3, 6)] for row in (header, *rows)]
    return brief[0], brief[1:]


def all_scores(content: dict) -> Table:
    """Every mean, ID / OOD, by rate."""
    scores = scores_of(content)
    every = sorted(lr for rates in scores.values() for lr in rates)
    written = dict.fromkeys(f"{lr:g}" for lr in every)  # 10 * 6e-5 is not 6e-4

    def cell(name: str, lr: float) -> str:
        return " / ".join(f"{mean_of(scores, name, lr, which):.1f}" for which in ("id", "ood"))

    def cells(name: str) -> list[str]:
        own = {f"{lr:g}": cell(name, lr) for lr in scores[name]}
        return [own.get(lr, "") for lr in written]

    return ["method", *written], [[row_title(name), *cells(name)] for name in scores]
