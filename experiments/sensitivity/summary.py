"""Scores of every training, those of every method by its chosen settings, and what they say in a few numbers."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common.estimate import Estimate, chance_above, estimate, interval
from experiments.common.methods import FOLLOWS, title
from experiments.common.report_kit import Table, fixed
from experiments.common.task import percent_right
from experiments.sensitivity.protocol import (
    Answered,
    Overlaps,
    Test,
    cross_fitted,
    fold_of,
    half_width,
    percent,
    resampled,
)
from experiments.sensitivity.protocol import Scores as CrossFitted

AS_GOOD = 5.0  # points below AdamW at its best rate: what a rate that nobody tuned may cost
Scores = Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]  # by method and rate: a "id", "ood" by split


def described(test: Any) -> dict[str, str]:
    """What a record says of a test: the groups of its examples, and their classes, where each has one."""
    labels = getattr(test, "labels", None)
    return ({} if labels is None else {"classes": digits(labels)}) | {"groups": ",".join(test.groups)}


def digits(classes: Tensor) -> str:
    """How a record keeps the classes of examples, of which there are no more than ten."""
    return "".join(map(str, classes.tolist()))


def classes_of(digits: str) -> Tensor:
    return torch.tensor(list(map(int, digits)))


def written(answers: Tensor) -> str:
    """How a record keeps the answers to a test: classes [N], or pixels of intersection and union [N, L, 2]."""
    if answers.ndim == 1:
        return digits(answers)
    which = np.moveaxis(answers.numpy(), -1, 0)
    planes = np.stack([which % 256, which // 256]).astype(np.uint8)  # of low and of high bytes: shorter by a third
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode()


def pixels_of(written: str, scenes: int) -> np.ndarray:
    """[N, L, 2]."""
    flat = np.frombuffer(zlib.decompress(base64.b85decode(written)), np.uint8)
    low, high = flat.reshape(2, 2, scenes, -1).astype(np.int64)
    return np.moveaxis(low + 256 * high, 0, -1)


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
    tests, found = data["tests"][str(result["seed"])], {}
    for name, answers in result["answers"].items():
        own, *others = (_score(answers[test], about, data["by_class"]) for test, about in tests.items())
        found[name] = {"id": own, "ood": mean(others)}
    return found


def _score(given: str, test: dict, by_class: bool) -> float:
    if "classes" in test:
        return percent_right(classes_of(given), classes_of(test["classes"]), by_class)
    return float(percent(*pixels_of(given, len(groups_of(test))).sum(0).T))


def mean_of(scores: Scores, name: str, lr: float, which: str) -> float:
    return estimate([split[which] for split in scores[name][lr]])[0]


class Answers:
    """All that the trainings of a study have answered.

    Attributes:
        seeds: of the splits.
        tests: their names, that in distribution first.
        groups: all names of groups.
    """

    def __init__(self, content: dict) -> None:
        data = content["data"]
        self._tests, self._by_class = data["tests"], data["by_class"]
        self.seeds: list[str] = list(self._tests)
        self.tests: list[str] = list(self._tests[self.seeds[0]])
        every = {group for sets in self._tests.values() for test in sets.values() for group in groups_of(test)}
        self.groups: list[str] = sorted(every)
        self._place = {group: number for number, group in enumerate(self.groups)}
        self._of: dict[str, dict[tuple, dict[str, dict]]] = {}
        for result in content["results"].values():
            for name, given in result["answers"].items():
                method, _, share = name.partition(" ")
                setting = (result["lr"], float(share) if share else None)
                self._of.setdefault(method, {}).setdefault(setting, {})[str(result["seed"])] = given
        for method, own in self._of.items():  # all of the fine-tuned weights: the method that they are of
            if method in FOLLOWS and any(share is not None for _, share in own):
                own |= {(lr, 1.0): given for (lr, _), given in self._of[FOLLOWS[method]].items()}

    @property
    def methods(self) -> list[str]:
        return list(self._of)

    def settings(self, method: str) -> list[tuple]:
        """Each a rate, and a share or None."""
        return sorted(self._of[method])

    def of(self, method: str, settings: Sequence[tuple], seed: str, test: str) -> Test:
        own = self._tests[seed][test]
        texts = [self._of[method][setting][seed][test] for setting in settings]
        groups = np.array([self._place[group] for group in groups_of(own)])
        if "classes" not in own:
            pixels = np.stack([pixels_of(text, len(groups)) for text in texts]).astype(float)
            return Overlaps(pixels[..., 0], pixels[..., 1], groups)
        truth, given = classes_of(own["classes"]), torch.stack([classes_of(text) for text in texts])
        classes = truth.numpy() if self._by_class else np.zeros(len(truth))
        return Answered((given == truth).double().numpy(), classes, groups)


def groups_of(test: dict) -> list[str]:
    """Of each example."""
    return test["groups"].split(",")


def choices(content: dict) -> dict[str, dict]:
    """By method: the settings of the folds, each a rate and a share; the scores by split; half of the interval of
    their mean minus AdamW's, by groups; and the differences to AdamW of no more rates than the method has."""
    answers = Answers(content)
    folds = np.array([fold_of(group) for group in answers.groups])
    once, counts = np.ones((1, len(answers.groups))), resampled(len(answers.groups))

    def scored(method: str, settings: Sequence[tuple], counts: np.ndarray) -> CrossFitted:
        own, *others = answers.tests
        ids = [answers.of(method, settings, seed, own) for seed in answers.seeds]
        oods = [[answers.of(method, settings, seed, name) for name in others] for seed in answers.seeds]
        return cross_fitted(ids, oods, folds, counts)

    usual = content.get("config", {}).get("lrs")
    few = [(lr, share) for lr, share in answers.settings("adamw") if usual is None or lr in usual]
    plain, coarse = scored("adamw", answers.settings("adamw"), counts), scored("adamw", few, once)
    found = {}
    for method in answers.methods:
        settings = answers.settings(method)
        own, drawn = scored(method, settings, once), scored(method, settings, counts)
        by_groups = {"id": drawn.id - plain.id, "ood": (drawn.ood - plain.ood).mean(-1)}
        found[method] = {
            "settings": [settings[number] for number in own.chosen[0]],
            "id": own.id[0].tolist(),
            "ood": own.ood[0].mean(-1).tolist(),
            **{name: own.ood[0, :, number].tolist() for number, name in enumerate(answers.tests[1:])},
            "by_groups": {which: half_width(minus.mean(1)) for which, minus in by_groups.items()},
            "equal": {
                "id": (own.id - coarse.id)[0].tolist(), "ood": (own.ood - coarse.ood)[0].mean(-1).tolist(),
            },
        }  # fmt: skip
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
        header += [f"minus AdamW, {which}", "by groups", "above"]
    header.append("equal grids, ID / OOD")
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
        row.append(" / ".join(fixed(interval(own["equal"][which]), signed=True) for which in ("id", "ood")))
        of_use = good(scores, name, summary)
        rows.append([*row, span(of_use) if of_use else "none"])
    return [*header, "within 5 points"], rows


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
