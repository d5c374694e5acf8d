"""`python -m experiments.sensitivity.tuning`: what it buys to tune a learning rate on few examples, by stored answers.

AdamW gets the rate that is best on n examples of the test in distribution, which are drawn; FTP has one rate. Both are
scored on what is left: in distribution, and elsewhere without the same groups. No training is made for it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import tyro

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, interval
from experiments.common.figures import Curve, curves
from experiments.common.report_kit import Table, fixed, markdown
from experiments.sensitivity.protocol import Answered, counted, percent
from experiments.sensitivity.summary import Answers, scores_of

COUNTS, DRAWS, SEED = (20, 50, 100, 200), 60, 0
FTP_LR = 6e-4
#: AdamW's rates: three, half a decade apart, around the one that is best for all tasks together; or all that it has.
GRIDS: Mapping[str, tuple[float, ...]] = {"3": (6e-5, 2e-4, 6e-4), "7": ()}
#: Studies by the source of their examples.
SOURCES = {
    "emoji": ("styles", "imagenet"),
    "solar cells": ("cells", "cells-poly"),
    "airline tweets": ("topics", "minilm"),
    "opinions": ("opinions", "opinions-newspapers", "opinions-tweets", "opinions-products"),
}
KINDS = {"pictures": ("emoji", "solar cells"), "texts": ("airline tweets", "opinions")}
WHICH = ("id", "ood")
Gain = tuple[float, float]  # FTP minus AdamW, ID and OOD


def drawn(groups: Sequence[int] | np.ndarray, count: int, of: int, seed: Sequence[int]) -> np.ndarray:
    """Which groups are held out [DRAWS, of]: so many of those of a test."""
    generator = np.random.default_rng([SEED, count, *seed])
    held = np.zeros((DRAWS, of))
    for row in held:
        row[generator.choice(np.unique(groups), count, replace=False)] = 1
    return held


def gain(ids: tuple[Answered, Answered], oods: Sequence[tuple[Answered, Answered]], held: np.ndarray) -> Gain:
    """The mean over the draws.

    Args:
        ids, oods: AdamW's answers at each of its rates, and FTP's at one, of a split.
        held: [DRAWS, groups].
    """
    scores = percent(*counted(ids[0], held))
    best = scores >= scores.max(1, keepdims=True) - 1e-9
    share = best / best.sum(1, keepdims=True)  # of equally good rates each is taken as often

    def difference(plain: Answered, own: Answered) -> float:
        return float(
            (percent(*counted(own, 1 - held))[:, 0] - (share * percent(*counted(plain, 1 - held))).sum(1)).mean()
        )

    return difference(*ids), mean(difference(*both) for both in oods)


def gains(answers: Answers, count: int, grid: Sequence[float]) -> list[Gain]:
    """Of each split."""
    rates = [setting for setting in answers.settings("adamw") if not grid or _is_one_of(setting[0], grid)]
    (one,) = [setting for setting in answers.settings("ftp") if _is_one_of(setting[0], [FTP_LR])]
    found = []
    for number, seed in enumerate(answers.seeds):
        own, *others = (
            (answers.of("adamw", rates, seed, test), answers.of("ftp", [one], seed, test)) for test in answers.tests
        )
        held = drawn(own[0].groups, count, len(answers.groups), [number])
        found.append(gain(own, others, held))
    return found


def _is_one_of(rate: float, rates: Sequence[float]) -> bool:
    return any(math.isclose(rate, other, rel_tol=1e-3) for other in rates)  # ten times 6e-5 is not 6e-4


def of_splits(values: Sequence[float], test: int, train: int) -> Estimate:
    """The mean over splits that share examples, with its 95 % interval.

    The variance of the mean is (1 / S + test / train) times that over the S splits (Nadeau and Bengio, Machine Learning
    52, 2003, section 3), which has the splits' and the test examples' part.
    """
    middle, half = interval(list(values))
    assert half is not None
    return middle, half * math.sqrt(1 + len(values) * test / train)


def sizes(content: dict) -> tuple[int, int]:
    """Examples of the test in distribution, and those that are fine-tuned on."""
    data = content["data"]
    test = len(next(iter(next(iter(data["tests"].values())).values()))["classes"])
    return test, (data["items"] if "items" in data else data["tweets"])["finetune"]


def both(pairs: Sequence[Gain]) -> str:
    """ID / OOD, each with the interval of its mean over what is given."""
    return " / ".join(fixed(interval(list(column)), signed=True) for column in zip(*pairs, strict=True))


def by_kind(found: Mapping[str, Gain]) -> list[str]:
    """Of all studies, of each kind, and of each source, of which two or four studies are."""
    sources = {source: [found[study] for study in studies] for source, studies in SOURCES.items()}
    kinds = [[pair for source in own for pair in sources[source]] for own in KINDS.values()]
    plain = [" / ".join(f"{mean(column):+.1f}" for column in zip(*pairs, strict=True)) for pairs in sources.values()]
    return [both([*found.values()]), *map(both, kinds), *plain]


def summary(studies: Mapping[str, dict]) -> dict:
    """Of the contents of the studies."""
    tuned: dict[str, dict[str, dict[str, list[Gain]]]] = {}
    kept = {name: Answers(content) for name, content in studies.items()}
    for grid, rates in GRIDS.items():
        for count in COUNTS:
            own = {name: gains(answers, count, rates) for name, answers in kept.items()}
            tuned.setdefault(grid, {})[str(count)] = own
    scores = {name: [content["summary"][method] for method in ("ftp", "adamw")] for name, content in studies.items()}
    best = {name: [mean(ftp[which]) - mean(plain[which]) for which in WHICH] for name, (ftp, plain) in scores.items()}
    return {"tuned": tuned, "best": best}


def tables(found: dict, studies: Mapping[str, dict]) -> tuple[Table, Table]:
    header, rows = ["AdamW's rate", "all ten", *KINDS, *SOURCES], []
    for grid in GRIDS:
        for count in COUNTS:
            of = {name: tuple(np.mean(pairs, 0).tolist()) for name, pairs in found["tuned"][grid][str(count)].items()}
            rows.append([f"best of {grid} on {count}", *by_kind(of)])
    rows.append(["each at its best rate", *by_kind({name: tuple(pair) for name, pair in found["best"].items()})])
    each = []
    for name, content in studies.items():
        cells = [f"sensitivity-{name}"]
        for grid in GRIDS:
            columns = zip(*found["tuned"][grid]["100"][name], strict=True)
            cells.append(" / ".join(fixed(of_splits(column, *sizes(content)), signed=True) for column in columns))
        each.append(cells)
    return (header, rows), (["study, 100 examples", *(f"best of {grid}" for grid in GRIDS)], each)


def draw(file: Path, found: dict, grid: str = "3") -> None:
    """FTP minus AdamW over the number of examples, by kind of task, with 95 % intervals."""
    panels: dict[str, dict[str, Curve]] = {}
    for place, title in enumerate(("in distribution", "out of distribution")):
        for kind, sources in KINDS.items():
            studies = [study for source in sources for study in SOURCES[source]]
            columns = [
                [mean(g[place] for g in found["tuned"][grid][str(count)][s]) for s in studies] for count in COUNTS
            ]
            middles, halves = zip(*map(interval, columns), strict=True)
            panels.setdefault(title, {})[f"{len(studies)} tasks of {kind}"] = Curve(COUNTS, middles, halves)
    curves(file, panels, "labels to choose AdamW's learning rate on", "FTP - AdamW, points", log_x=True, ticks=COUNTS,
           from_zero=True)  # fmt: skip


def radii(studies: Mapping[str, dict], runs: Mapping[str, dict]) -> dict[str, dict[str, Gain]]:
    """By task and by both rates of FTP: its mean minus AdamW's at its best rate, on the splits of the runs."""
    found: dict[str, dict[str, Gain]] = {}
    for name, run in runs.items():
        seeds, plain = run["config"]["seeds"], studies[name]["summary"]["adamw"]
        places = [studies[name]["config"]["seeds"].index(seed) for seed in seeds]
        usual, own = scores_of(studies[name])["ftp"], scores_of(run)
        for lr in run["config"]["lrs"]:
            (at,) = [rate for rate in usual if _is_one_of(rate, [lr])]
            of = {"0.01": [usual[at][place] for place in places]}
            of |= {key.partition(" ")[2]: scores[lr] for key, scores in own.items() if lr in scores}
            for rate, scores in of.items():
                minus = [mean(s[which] for s in scores) - mean(plain[which][p] for p in places) for which in WHICH]
                found.setdefault(name, {})[f"lr {lr:g}, radius_lr {rate}"] = (minus[0], minus[1])
    return found


def of_radii(found: Mapping[str, dict[str, Gain]]) -> tuple[Table, Table]:
    """Each task, and differences to the rate of 0.01 over those that have both."""
    columns = sorted({column for own in found.values() for column in own})
    cell = {
        name: [" / ".join(f"{x:+.1f}" for x in own[c]) if c in own else "" for c in columns]
        for name, own in found.items()
    }
    differences = []
    for column in columns:
        usual = f"{column.partition(', ')[0]}, radius_lr 0.01"
        both_there = [own for own in found.values() if column in own]
        pairs = [(own[column][0] - own[usual][0], own[column][1] - own[usual][1]) for own in both_there]
        if column != usual and len(pairs) > 2:
            worst = " / ".join(f"{min(values):+.1f}" for values in zip(*pairs, strict=True))
            differences.append([column, str(len(pairs)), both(pairs), worst])
    return (["study", *columns], [[f"radius-{name}", *cells] for name, cells in cell.items()]), (
        ["minus radius_lr 0.01", "tasks", "ID / OOD", "worst task"],
        differences,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """`--studies`: a folder with those of rates, to which this one is added."""

    def run(studies: Path = Path("docs/studies")) -> None:
        folders = [studies / f"sensitivity-{name}" for own in SOURCES.values() for name in own]
        contents = {
            folder.name.partition("-")[2]: json.loads((folder / "metrics.json").read_text()) for folder in folders
        }
        found = summary(contents)
        every, each = tables(found, contents)
        runs = {name: studies / f"radius-{name}" / "metrics.json" for name in contents}
        moved = radii(contents, {name: json.loads(file.read_text()) for name, file in runs.items() if file.exists()})
        text = [
            "# One rate against a tuned one",
            f"FTPAdamW at {FTP_LR:g}, minus AdamW at the rate that is best on so many examples of the test in "
            f"distribution: the mean of {DRAWS} draws in each of five splits. Both are scored on the other examples, "
            "and out of distribution without the same emoji. Three rates: 6e-5, 2e-4 and 6e-4; seven: all that AdamW "
            "has in a study. ID / OOD, with the 95 % interval of the mean by Student's t over the studies; a source "
            "has too few of them for one.",
            "\n".join(markdown(*every)),
            "![FTP minus AdamW by the number of labels](gain.png)",
            "Study by study, with 95 % intervals over the five splits, which share examples (Nadeau and Bengio 2003):",
            "\n".join(markdown(*each)),
            "## The rate of the radii",
            "FTPAdamW minus AdamW at its best rate, ID / OOD, on the first three splits, by both rates of FTP:",
            *("\n".join(markdown(*part)) for part in of_radii(moved)),
            "Made of the answers that the studies have stored: `python -m experiments.sensitivity.tuning`.",
        ]  # fmt: skip
        out = studies / "tuning"
        out.mkdir(exist_ok=True)
        draw(out / "gain.png", found)
        checkpoint.write_text(out / "report.md", "\n\n".join(text) + "\n")
        checkpoint.write_text(out / "metrics.json", json.dumps(found | {"radii": moved}, indent=1) + "\n")
        print("\n".join(markdown(*every)))

    tyro.cli(run, args=arguments, prog="python -m experiments.sensitivity.tuning")
    return 0


if __name__ == "__main__":
    from experiments.common.program import start

    start("experiments.sensitivity.tuning", "demo")
