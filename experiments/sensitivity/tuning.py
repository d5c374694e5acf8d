"""`python -m experiments.sensitivity.tuning`: what it buys to tune a learning rate on few examples, by stored answers.

AdamW gets the rate that is best on n examples of the test in distribution, which are drawn; FTP has one rate. Both are
scored on what is left: in distribution, and elsewhere without the same groups. No training is made for it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import tyro

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, interval
from experiments.common.figures import SMALL, dots, heading, legend, legend_height, panels, save
from experiments.common.looks import LOOKS
from experiments.common.methods import title
from experiments.common.report_kit import Table, fixed, markdown
from experiments.sensitivity.protocol import Test, counted, percent
from experiments.sensitivity.summary import Answers, choices, groups_of, mean_of, minus_adamw, row_title, scores_of

COUNTS, DRAWS, SEED = (20, 50, 100, 200), 60, 0
FTP_LR, ADAMW_LR = 6e-4, 2e-4  # the best in the mean of other tasks: see chosen_elsewhere
ONE_RATE = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)
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
#: Tasks of the figure alone: their tests have too few examples to draw the largest counts of labels from.
DRAWN_TOO = ("sensitivity-scenes",)
#: Further runs, by the study that has AdamW on their splits.
BESIDE: Mapping[str, tuple[str, ...]] = {
    "drawn": ("drawn-radius",),
    "long-newspapers": ("free-long-newspapers",),
    **dict.fromkeys(("long-imagenet", "longer-imagenet", "longer-newspapers", "sensitivity-opinions"), ()),
    **{f"sensitivity-{name}": (f"lp-ft-{name}", f"head-{name}") for name in ("minilm", *SOURCES["opinions"][1:])},
}
WHICH = ("id", "ood")
Gain = tuple[float, float]  # FTP minus AdamW, ID and OOD


def drawn(groups: Sequence[int] | np.ndarray, count: int, of: int, seed: Sequence[int]) -> np.ndarray:
    """Which groups are held out [DRAWS, of]: so many of those of a test."""
    generator = np.random.default_rng([SEED, count, *seed])
    held = np.zeros((DRAWS, of))
    for row in held:
        row[generator.choice(np.unique(groups), count, replace=False)] = 1
    return held


def gain(ids: tuple[Test, Test], oods: Sequence[tuple[Test, Test]], held: np.ndarray) -> Gain:
    """The mean over the draws.

    Args:
        ids, oods: AdamW's answers at each of its rates, and FTP's at one, of a split.
        held: [DRAWS, groups].
    """
    scores = percent(*counted(ids[0], held))
    best = scores >= scores.max(1, keepdims=True) - 1e-9
    share = best / best.sum(1, keepdims=True)  # of equally good rates each is taken as often

    def difference(plain: Test, own: Test) -> float:
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
    test = len(groups_of(next(iter(next(iter(data["tests"].values())).values()))))
    return test, next(data[kind]["finetune"] for kind in ("items", "tweets", "scenes") if kind in data)


def both(pairs: Sequence[Gain]) -> str:
    """ID / OOD, each with the interval of its mean over what is given."""
    return " / ".join(fixed(interval(list(column)), signed=True) for column in zip(*pairs, strict=True))


def by_kind(found: Mapping[str, Gain]) -> list[str]:
    """Of all studies, of each kind, and of each source, of which two or four studies are."""
    sources = [[found[study] for study in studies] for studies in SOURCES.values()]
    plain = [" / ".join(f"{mean(column):+.1f}" for column in zip(*pairs, strict=True)) for pairs in sources]
    return [both([*found.values()]), *(both(of_kind(found, kind)) for kind in KINDS), *plain]


def of_kind(found: Mapping[str, Gain], kind: str) -> list[Gain]:
    return [found[study] for source in KINDS[kind] for study in SOURCES[source]]


def by_study(tuned: Mapping[str, Sequence[Gain]]) -> dict[str, Gain]:
    """Means over the splits."""
    return {name: tuple(np.mean(pairs, 0).tolist()) for name, pairs in tuned.items()}


def draw(file: Path, found: dict) -> None:
    """The gain by the number of labels, of each kind."""
    rows = {}
    for kind in reversed(KINDS):
        for count in COUNTS:
            pairs = of_kind(by_study(found["tuned"]["7"][str(count)]), kind)
            rows[f"{kind}, {count} labels"] = dict(
                zip(("ID", "OOD"), (interval(list(column)) for column in zip(*pairs, strict=True)), strict=True)
            )
    dots(file, rows, "FTPAdamW minus AdamW, points")


def minus_best(content: dict, method: str, which: str) -> dict[float, float]:
    """Mean scores by the rate, minus AdamW's at its best one."""
    scores, best = scores_of(content), mean(content["summary"]["adamw"][which])
    return {float(f"{lr:.3g}"): mean_of(scores, method, lr, which) - best for lr in scores[method]}


def draw_tolerance(file: Path, studies: Mapping[str, dict]) -> None:
    """A thin line for each task, and a thick one of their mean at the rates that all have."""
    titles = [title(method) for method in ("adamw", "ftp")]
    figure, both_axes = panels(2, 3.0, legend_height(titles), sharey=True)
    for axes, which, name in zip(both_axes, WHICH, ("in distribution", "out of distribution"), strict=True):
        for method in ("adamw", "ftp"):
            lines, colour = [], LOOKS[title(method)].colour
            for content in studies.values():
                line = minus_best(content, method, which)
                axes.plot(*zip(*sorted(line.items()), strict=True), color=colour, linewidth=0.5, alpha=0.5)
                lines.append(line)
            shared = sorted(set.intersection(*map(set, lines)))
            means = [mean(line[lr] for line in lines) for lr in shared]
            axes.plot(shared, means, color=colour, linewidth=2.4, label=title(method))
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xscale("log")
        heading(axes, name)
    both_axes[0].set_ylim(bottom=-40)  # a training that is lost stands below
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel("points minus AdamW at its best rate", fontsize=SMALL)
    legend(figure, both_axes[0].get_legend_handles_labels()[0], titles)
    save(figure, file)


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
            rows.append([f"best of {grid} on {count}", *by_kind(by_study(found["tuned"][grid][str(count)]))])
    plain, own = (with_one_rate(studies)[key] for key in (("adamw", ADAMW_LR), ("ftp", FTP_LR)))
    left = {name: (own[name][0] - x, own[name][1] - y) for name, (x, y) in plain.items()}
    rows.append([f"{ADAMW_LR:g} in all", *by_kind(left)])
    rows.append(["each at its best rate", *by_kind({name: tuple(pair) for name, pair in found["best"].items()})])
    each = []
    for name, content in studies.items():
        cells = [f"sensitivity-{name}"]
        for grid in GRIDS:
            columns = zip(*found["tuned"][grid]["100"][name], strict=True)
            cells.append(" / ".join(fixed(of_splits(column, *sizes(content)), signed=True) for column in columns))
        each.append(cells)
    return (header, rows), (["study, 100 examples", *(f"best of {grid}" for grid in GRIDS)], each)


def at_one_rate(studies: Mapping[str, dict]) -> Table:
    """Of AdamW and FTP, minus AdamW at its best rate: the mean over the studies where all have the rate, and the
    worst."""
    rows, found = [], with_one_rate(studies)
    for rate in ONE_RATE:
        row = [f"{rate:g}"]
        for method in ("adamw", "ftp"):
            for of in (mean, min):
                there = zip(*found.get((method, rate), {}).values(), strict=True)
                row.append(" / ".join(f"{of(column):+.1f}" for column in there))
        rows.append(row)
    return ["rate", "AdamW", "worst", "FTP", "worst"], rows


def with_one_rate(studies: Mapping[str, dict]) -> dict[tuple[str, float], dict[str, Gain]]:
    """By method and rate, of those that all studies have: minus AdamW at its best rate, by study."""
    found: dict[tuple[str, float], dict[str, Gain]] = {}
    for name, content in studies.items():
        own, plain = scores_of(content), content["summary"]["adamw"]
        for method, rate in product(("adamw", "ftp"), ONE_RATE):
            for splits in (own[method][at] for at in own[method] if _is_one_of(at, [rate])):
                minus = [mean(s[which] for s in splits) - mean(plain[which]) for which in WHICH]
                found.setdefault((method, rate), {})[name] = (minus[0], minus[1])
    return {key: of for key, of in found.items() if len(of) == len(studies)}


def chosen_elsewhere(studies: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """By method and source, the rate that is best in distribution in the mean over the studies of all other sources."""
    found, rates = with_one_rate(studies), dict[str, dict[str, float]]()
    for method, (source, own) in product(("adamw", "ftp"), SOURCES.items()):
        means = {
            rate: mean(gain[0] for name, gain in of.items() if name not in own)
            for (name, rate), of in found.items()
            if name == method
        }
        rates.setdefault(method, {})[source] = max(means, key=means.__getitem__)
    return rates


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


def without_rate(studies: Mapping[str, dict], runs: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
    """By task and by method: its splits, and its mean on them minus those of AdamW at its best rate, of FTP at FTP_LR,
    and of what FTP goes around."""
    found: dict[str, dict[str, dict]] = {}
    for name, run in runs.items():
        study, scores = studies[name], scores_of(run)
        (at,) = [rate for rate in scores_of(study)["ftp"] if _is_one_of(rate, [FTP_LR])]
        others = {which: {"AdamW": study["summary"]["adamw"][which]} for which in WHICH}
        for which in WHICH:
            others[which]["FTP"] = [split[which] for split in scores_of(study)["ftp"][at]]
        places = {str(seed): place for place, seed in enumerate(study["config"]["seeds"])}
        seeds = {m: [r["seed"] for r in run["results"].values() if m in r["answers"]] for m in scores}
        own = {m: dict(zip(seeds[m], next(iter(of_rate.values())), strict=True)) for m, of_rate in scores.items()}
        for method, splits in own.items():
            minus = {
                other: [
                    mean(splits[s][which] - others[which][other][places[str(s)]] for s in splits) for which in WHICH
                ]
                for other in ("AdamW", "FTP")
            }
            if (base := own.get(method.removeprefix("ftp_"), splits)) is not splits:
                minus["base"] = [mean(splits[s][which] - base[s][which] for s in splits) for which in WHICH]
            found.setdefault(name, {})[method] = {"splits": list(splits), "minus": minus}
    return found


def of_defaults(found: Mapping[str, dict[str, dict]]) -> tuple[Table, Table]:
    """Each task, minus AdamW; and means over the tasks."""
    methods = list(dict.fromkeys(method for own in found.values() for method in own))
    alone = [method for method in methods if not method.startswith("ftp_")]
    rows, sums = [], []
    for name, own in found.items():
        cells = [" / ".join(f"{x:+.1f}" for x in own[m]["minus"]["AdamW"]) if m in own else "" for m in alone]
        rows.append([f"free-{name}", ", ".join(map(str, own[alone[0]]["splits"])), *cells])
    kinds = {"": [*found]} | {f", {kind}": [n for s in own for n in SOURCES[s]] for kind, own in KINDS.items()}
    for method, (kind, names) in product(methods, kinds.items()):
        there = [found[name][method] for name in names if method in found.get(name, {})]
        if kind and len(there) < 2:
            continue
        splits = sorted({len(one["splits"]) for one in there})
        row = [title(method) + kind, str(len(there)), " to ".join(map(str, dict.fromkeys((splits[0], splits[-1]))))]
        for other in ("AdamW", "FTP", "base"):
            pairs = [one["minus"][other] for one in there if other in one["minus"]]
            row.append(both(pairs) if len(pairs) > 2 else "")
        worst = zip(*(one["minus"]["AdamW"] for one in there), strict=True)
        sums.append([*row, " / ".join(f"{min(values):+.1f}" for values in worst)])
    header = ["", "tasks", "splits", "minus AdamW", f"minus FTPAdamW at {FTP_LR:g}", "minus its base alone"]
    return (["minus AdamW", "splits", *map(title, alone)], rows), ([*header, "worst task, minus AdamW"], sums)


def beside(study: dict, *runs: dict) -> dict[str, list[Gain]]:
    """Of FTP and the methods of the runs, on the splits that all have, minus AdamW at its best rate: by method, at
    settings chosen alike and at each one."""
    seeds = sorted(set.intersection(*({one["seed"] for one in run["results"].values()} for run in (study, *runs))))
    tests = [{str(seed): run["data"]["tests"][str(seed)] for seed in seeds} for run in (study, *runs)]
    assert all(other == tests[0] for other in tests), "other examples than the study's"
    results = [
        one for seed in seeds for run in (study, *runs) for one in run["results"].values() if one["seed"] == seed
    ]
    content = {"results": dict(enumerate(results)), "data": study["data"] | {"tests": tests[0]}}
    chosen, own = choices(content), {"ftp", "lp_ft", *(name for run in runs for name in scores_of(run))}
    found = {
        f"{title(method)}, chosen": [*zip(*(minus_adamw(chosen, method, which) for which in WHICH), strict=True)]
        for method in chosen
        if method in {name.partition(" ")[0] for name in own}
    }
    plain = [*zip(*(chosen["adamw"][which] for which in WHICH), strict=True)]
    for name, of_rate in ((name, of_rate) for name, of_rate in scores_of(content).items() if name in own):
        for lr, splits in sorted(of_rate.items()):
            minus = [(s["id"] - x, s["ood"] - y) for s, (x, y) in zip(splits, plain, strict=True)]
            found[f"{row_title(name)}, lr {lr:g}"] = minus
    return found


def of_beside(found: Mapping[str, dict[str, list[Gain]]]) -> Table:
    """Of the ten tasks, which have their rates elsewhere, only what is chosen."""
    rows = [
        [study, name, str(len(pairs)), both(pairs)]
        for study, own in found.items()
        for name, pairs in own.items()
        if name.endswith("chosen") or not study.startswith("sensitivity-")
    ]
    return ["study", "method", "splits", "minus AdamW"], rows


def main(arguments: Sequence[str] | None = None) -> int:
    """`--studies`: a folder with those of rates, to which this one is added."""

    def run(studies: Path = Path("docs/studies")) -> None:
        folders = [studies / f"sensitivity-{name}" for own in SOURCES.values() for name in own]
        contents = {
            folder.name.partition("-")[2]: json.loads((folder / "metrics.json").read_text()) for folder in folders
        }
        found = summary(contents)
        every, each = tables(found, contents)

        def runs(kind: str) -> dict[str, dict]:
            files = {name: studies / f"{kind}-{name}" / "metrics.json" for name in contents}
            return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}

        def content(name: str) -> dict:
            return json.loads((studies / name / "metrics.json").read_text())

        more = {
            study: beside(content(study), *map(content, names))
            for study, names in BESIDE.items()
            if all((studies / name / "metrics.json").exists() for name in (study, *names))
        }
        moved, free = radii(contents, runs("radius")), without_rate(contents, runs("free"))
        text = [
            "# One rate against a tuned one",
            f"FTPAdamW at {FTP_LR:g}, minus AdamW at the rate that is best on so many groups of the test in "
            f"distribution (an emoji is one in all its variants, else an example is): the mean of {DRAWS} draws in "
            "each of five splits. Both are scored on the other groups. Three rates: 6e-5, 2e-4 and 6e-4; seven: all "
            "that AdamW has in a study. One group of emoji has 34 pictures of one class, and where it is drawn among "
            "few, AdamW's largest rate may win with that class alone: most of what 7 rates lose there on 20 and 50. "
            f"Both at the rate that is best on other tasks: {ADAMW_LR:g} in all. ID / OOD, with the 95 % interval of "
            "the mean by Student's t over the studies; a source has too few of them for one.",
            "\n".join(markdown(*every)),
            "![FTP minus AdamW at the best of seven rates, by the labels that choose it; 95 % intervals](gain.png)",
            "Study by study, with 95 % intervals over the five splits, which share examples (Nadeau and Bengio 2003):",
            "\n".join(markdown(*each)),
            "## One rate for all",
            "![AdamW and FTPAdamW at every rate, minus AdamW at its best: thin a task, also scenes, thick the mean]"
            "(tolerance.png)",
            "Minus AdamW with a rate of its own for each study, ID / OOD: the mean of all ten, and the worst one:",
            "\n".join(markdown(*at_one_rate(contents))),
            "The rate that is best in distribution in the mean over the studies of the three other sources: "
            + "; ".join(
                f"{title(method)} {', '.join(f'{rate:g} ({source})' for source, rate in of.items())}"
                for method, of in chosen_elsewhere(contents).items()
            )
            + ".",
            "## The rate of the radii",
            "FTPAdamW minus AdamW at its best rate, ID / OOD, on the first three splits, by both rates of FTP:",
            *("\n".join(markdown(*part)) for part in of_radii(moved)),
            "## Without a learning rate",
            "Optimizers at their packages' defaults, ID / OOD, minus AdamW at its best rate, on the splits that were "
            "run, and means over the tasks with their 95 % intervals by Student's t:",
            *("\n".join(markdown(*part)) for part in of_defaults(free)),
            "## Further runs",
            "Minus AdamW at its best rate, ID / OOD, with 95 % intervals by Student's t over the splits. "
            "Chosen: rates, and radius_lr, by the same protocol as AdamW's.",
            "\n".join(markdown(*of_beside(more))),
            "Made of the answers that the studies have stored: `python -m experiments.sensitivity.tuning`.",
        ]  # fmt: skip
        out = studies / "tuning"
        out.mkdir(exist_ok=True)
        draw(out / "gain.png", found)
        draw_tolerance(out / "tolerance.png", contents | {name: content(name) for name in DRAWN_TOO})
        checkpoint.write_text(out / "report.md", "\n\n".join(text) + "\n")
        checkpoint.write_text(
            out / "metrics.json", json.dumps(found | {"radii": moved, "free": free, "beside": more}, indent=1) + "\n"
        )
        print("\n".join(markdown(*every)))

    tyro.cli(run, args=arguments, prog="python -m experiments.sensitivity.tuning")
    return 0


if __name__ == "__main__":
    from experiments.common.program import start

    start("experiments.sensitivity.tuning", "demo")
