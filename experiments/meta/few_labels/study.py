"""`python -m experiments.meta.few_labels`: the study and its command."""

import time
from collections.abc import Callable, Mapping
from statistics import mean, median

from experiments.common.estimate import Estimate, estimate, interval
from experiments.common.figures import dots
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.common.study import Study
from experiments.meta.few_labels.config import ABOUT, BATCH, HELD_OUT, LRS, WRONG, Config, Name
from experiments.meta.few_labels.data import Data
from experiments.meta.few_labels.methods import METHODS, Run, answered

PLAIN, OURS = "add", "learned"
BY_HYPERGRADIENTS = (OURS, "then_learned_wise")  # all others are simple


def pieces(config: Config, data: Data) -> Mapping[str, Callable[[], dict]]:
    """One method on one split each."""

    def scored(name: Name, seed: int, method: str) -> dict:
        run, begin = Run(data.problem(name, seed), config, name, seed), time.process_time()
        score, own = answered(run, method)
        return {"score": score, "seconds": round(time.process_time() - begin, 1), "learned": own}

    return {
        piece(name, seed, method): lambda n=name, s=seed, m=method: scored(n, s, m)
        for name in config.tasks
        for seed in config.seeds
        for method in methods_of(config.methods, name)
    }


def piece(name: str, seed: int, method: str) -> str:
    return f"{name}, split {seed}, {method}"


def methods_of(methods: tuple[str, ...] | list[str], name: str) -> list[str]:
    return [method for method in methods if METHODS[method].wrong in (None, name in WRONG)]


def summarise(content: dict) -> dict[str, dict[str, dict]]:
    """By task and method: scores by split, and the seconds of a training."""
    config, found = content["config"], {}
    for name in config["tasks"]:
        found[name] = {}
        for method in methods_of(config["methods"], name):
            own = [content["results"][piece(name, seed, method)] for seed in config["seeds"]]
            seconds = median(result["seconds"] for result in own)
            found[name][method] = {"scores": [result["score"] for result in own], "seconds": seconds}
    return found


def best_simple(rows: dict[str, dict]) -> str:
    """That with the highest mean on the tests: chosen after the fact, in its favour."""
    return max(
        (method for method in rows if method not in BY_HYPERGRADIENTS), key=lambda method: mean(rows[method]["scores"])
    )


def gain(rows: dict[str, dict], method: str, other: str) -> Estimate:
    """Split by split."""
    pairs = zip(rows[method]["scores"], rows[other]["scores"], strict=True)
    return interval([own - its for own, its in pairs])


def table(content: dict) -> Table:
    rows = []
    for name, by_method in content["summary"].items():
        simple = best_simple(by_method)
        for method, own in by_method.items():
            best = " (best simple)" if method == simple else ""
            gains = (fixed(gain(by_method, method, other), signed=True) for other in (PLAIN, simple))
            cost = f"{own['seconds'] / by_method[PLAIN]['seconds']:.1f} x"
            rows.append([name, METHODS[method].title + best, fixed(estimate(own["scores"])), *gains, cost])
    header = ["task", "method", "score", f"minus {METHODS[PLAIN].title}", "minus the best simple one", "cost"]
    return header, rows


def learned_table(content: dict) -> Table | None:
    """Mean of what the recipe learned: relative weights of the groups, what a loss of 1 costs, the labels' share."""
    rows, config = [], content["config"]
    for name in content["summary"]:
        if OURS in content["summary"][name]:
            found = [content["results"][piece(name, seed, OURS)]["learned"] for seed in config["seeds"]]
            for number, group in enumerate(content["data"][name]["groups"]):
                rows.append([name, group, fixed(estimate([own["group"][number] for own in found]), 2, signed=True)])
            for what in ("loss", "share"):
                rows.append([name, what, fixed(estimate([own[what][0] for own in found]), 2, signed=True)])
    return (["task", "of", "learned number"], rows) if rows else None


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    tasks = "; ".join(
        f"{name}: {ABOUT[name]}, {data[name]['source']} examples of the source, {data[name]['labels']} labels, "
        f"{data[name]['tests']} tests" for name in config["tasks"]
    )  # fmt: skip
    return (
        f"Tasks: {tasks}. Scores are accuracies in %, means over the classes but for emoji; ± standard error over "
        f"splits {', '.join(map(str, config['seeds']))} of one pool, and differences with 95 % intervals by Student's "
        f"t. Whole networks from their public weights, {config['steps']} steps of {BATCH} examples by AdamW, learning "
        f"rate {LRS[True]:g} on texts and {LRS[False]:g} on pictures, rising in a tenth of the steps and "
        "falling to 0 as a cosine. Where something is "
        f"chosen by the labels, one in {HELD_OUT} is held out for that; Optuna has {config['trials']} trainings and a "
        "last one with all labels. The best simple way is that with the highest mean on the tests, which favours it. "
        f"Cost: seconds of the processor over those of {METHODS[PLAIN].title!r}."
    )


def write_report(record: RunRecord) -> None:
    content = record.content
    summary = content["summary"] = summarise(content)
    gains = {
        name: {
            METHODS[method].title: gain(rows, method, PLAIN)
            for method in rows if method not in (PLAIN, "source", "labels")
        }
        for name, rows in summary.items()
    }  # fmt: skip
    dots(record.folder / "gain.png", gains, f"points above {METHODS[PLAIN].title!r}")
    write(
        record,
        "A few labels of the domain that counts",
        setting(content),
        bullets(f"{METHODS[name].title}: {METHODS[name].about}." for name in content["config"]["methods"]),
        table(content),
        f"![Points above {METHODS[PLAIN].title!r}, with 95 % intervals over splits](gain.png)",
        "What the recipe learned, mean over the splits: of a group the logarithm of its weight, up to a constant; of "
        "the loss how much one nat more takes from that logarithm; of the share of the labels its logit.",
        learned_table(content),
    )


STUDY = Study(
    name="few-labels",
    prog="experiments.meta.few_labels",
    about="Learn a domain from a hundred labels of it and many examples of others: learned weights of the examples "
    "against simple ways. Stop it at any time; the same command goes on from there.",
    config=Config,
    fast=Config(
        tasks=("poly", "wrong emoji"),
        methods=("add", "then_labels", "learned"),
        seeds=(0,),
        steps=20,
        limit=96,
        labels=8,
    ),
    load=Data,
    pieces=pieces,
    report=write_report,
    table=table,
    packages=("scikit-learn", "optuna"),
)
main = STUDY.main
