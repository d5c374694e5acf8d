"""Means over splits by learning rate, and what they say of a method in a few numbers."""

from collections.abc import Mapping, Sequence

from experiments.common.estimate import Estimate, chance_above, estimate, interval
from experiments.common.methods import title
from experiments.common.report_kit import Table, fixed

WITHIN = 10.0  # the width of the window around the best rate: a factor of its root each way
ENOUGH = 0.5  # points below AdamW's best, within which a method learns as much
AS_GOOD = 5.0  # points below AdamW at its best rate: what a rate that nobody tuned may cost
Scores = Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]  # by method and rate: a "id", "ood" by split


def scores_of(content: dict) -> dict[str, dict[float, list[dict[str, float]]]]:
    """By method and rate, one for each split; WiSE-FT's stand beside those of the trainings they are made of."""
    found: dict[str, dict[float, list[dict[str, float]]]] = {}
    for result in content["results"].values():
        for method, scores in result["scores"].items():
            found.setdefault(method, {}).setdefault(result["lr"], []).append(scores)
    return found


def mean_of(scores: Scores, method: str, lr: float, which: str) -> float:
    return estimate([split[which] for split in scores[method][lr]])[0]


def best_rate(scores: Scores, method: str) -> float:
    """Where the mean in distribution is highest: nobody who tunes sees the other domains."""
    return max(scores[method], key=lambda lr: mean_of(scores, method, lr, "id"))


def differences(scores: Scores, method: str, lr: float, which: str) -> list[float]:
    """To AdamW at its best rate, split by split."""
    plain = scores["adamw"][best_rate(scores, "adamw")]
    return [own[which] - other[which] for own, other in zip(scores[method][lr], plain, strict=True)]


def minus_adamw(scores: Scores, method: str, lr: float, which: str) -> Estimate:
    """The mean of these, and half of its 95 % interval."""
    return interval(differences(scores, method, lr, which))


def near(scores: Scores, method: str) -> list[float]:
    """The rates at most a factor of the square root of WITHIN from the best."""
    best = best_rate(scores, method)
    return [lr for lr in scores[method] if max(lr / best, best / lr) <= WITHIN**0.5]


def worst(scores: Scores, method: str, which: str) -> Estimate:
    """Minus AdamW's best, at the worst of the near rates."""
    found = [minus_adamw(scores, method, lr, which) for lr in near(scores, method)]
    return min(found, key=lambda difference: difference[0])


def good(scores: Scores, method: str) -> list[float]:
    """The rates at which neither score is more than AS_GOOD below AdamW's at its best."""
    return [
        lr
        for lr in sorted(scores[method])
        if all(minus_adamw(scores, method, lr, which)[0] >= -AS_GOOD for which in ("id", "ood"))
    ]


def at_equal_id(scores: Scores, method: str) -> float | None:
    """Of the rates at which a method learns as much as AdamW at its best, that with the highest mean out of it."""
    level = mean_of(scores, "adamw", best_rate(scores, "adamw"), "id") - ENOUGH
    enough = [lr for lr in scores[method] if mean_of(scores, method, lr, "id") >= level]
    return max(enough, key=lambda lr: mean_of(scores, method, lr, "ood"), default=None)


def table(content: dict) -> Table:
    """A row for each method."""
    scores = scores_of(content)
    header = [
        "method", "best rate", "ID / OOD", "minus AdamW, ID", "ahead", "minus AdamW, OOD", "ahead",
        "OOD at equal ID", "worst near, ID", "worst near, OOD", "good rates",
    ]  # fmt: skip
    rows = []
    for method in scores:
        best, equal = best_rate(scores, method), at_equal_id(scores, method)
        both = " / ".join(f"{mean_of(scores, method, best, which):.1f}" for which in ("id", "ood"))
        lrs = sorted(scores[method])
        edge = " (edge)" if best in (lrs[0], lrs[-1]) else ""
        ahead = []
        for which in ("id", "ood"):
            chance = chance_above(differences(scores, method, best, which))
            percent = "" if chance is None else f"{100 * chance:.0f} %"
            ahead += [fixed(minus_adamw(scores, method, best, which), signed=True), percent]
        at_equal = "none" if equal is None else fixed(minus_adamw(scores, method, equal, "ood"), signed=True)
        falls = [fixed(worst(scores, method, which), signed=True) for which in ("id", "ood")]
        of_use = good(scores, method)
        rates = f"{of_use[0]:g} to {of_use[-1]:g}" if of_use else "none"
        rows.append([title(method), f"{best:g}{edge}", both, *ahead, at_equal, *falls, rates])
    return header, rows


def in_brief(content: dict) -> Table:
    """What a terminal has room for."""
    header, rows = table(content)
    return header[:7], [row[:7] for row in rows]


def all_scores(content: dict) -> Table:
    """Every mean, ID / OOD, by rate."""
    scores = scores_of(content)
    lrs = sorted({lr for rates in scores.values() for lr in rates})

    def cell(method: str, lr: float) -> str:
        both = (f"{mean_of(scores, method, lr, which):.1f}" for which in ("id", "ood"))
        return " / ".join(both) if lr in scores[method] else ""

    return ["method", *(f"{lr:g}" for lr in lrs)], [[title(m), *(cell(m, lr) for lr in lrs)] for m in scores]
