"""From the trials to report.md and its figures: what is chosen, and what it comes to on the test sets."""

from statistics import mean
from typing import Any, Literal

from experiments.common.estimate import estimate
from experiments.common.figures import Curve, curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, paired, write
from experiments.meta.noise.config import BATCH, CLEAN_BATCH, CLEAN_SHARE, HIDDEN, MOMENTUM, NOISE, RAMP
from experiments.meta.noise.methods import METHODS, weighted_by_net
from experiments.meta.noise.training import BINS, HIGHEST, LOSSES

When = Literal["end", "stopped"]
TITLES: dict[When, str] = {"end": "at the end", "stopped": "stopped early"}
PLAIN = "noisy"  # plain training, to which seconds are compared
BOTH = "both"  # plain training with the same examples, to which accuracies are compared
ORACLE = "oracle"


def piece(data: str, method: str, seed: int) -> str:
    """The name of a piece; labels are wrong by chance, uniformly over the other classes."""
    return f"{data}-uniform-{method}-seed{seed}"


def summarise(content: dict) -> dict[str, dict[str, dict]]:
    """By data and method. Everything is chosen by mean accuracy over the seeds' validation sets."""
    config, found = content["config"], {}
    for data in config["datasets"]:
        rows = {}
        for method in config["methods"]:
            rows[method] = _row([content["results"][piece(data, method, s)]["trials"] for s in config["seeds"]])
        for row in rows.values():
            if PLAIN in rows and rows[PLAIN]["seconds"]:
                row["cost"] = row["seconds"] / rows[PLAIN]["seconds"]
            if BOTH in rows:
                for when in TITLES:
                    row[when]["minus_both"] = paired(row[when]["tests"], rows[BOTH][when]["tests"])
        found[data] = rows
    return found


def _row(own: list[list[dict]]) -> dict[str, Any]:
    """Of one method: `own` has the trials, in one order, for each seed."""
    row: dict[str, Any] = {
        "seconds": mean(trial["seconds"] for seed in own for trial in seed),
        "tried": len(own[0]),
        "diverged": sum(trial["diverged"] for seed in own for trial in seed),
    }
    rates = sorted({trial["lr"] for trial in own[0]})
    for when in TITLES:
        scores = [mean(_at(seed[k], "validation", when) for seed in own) for k in range(len(own[0]))]
        best = scores.index(max(scores))
        chosen = [seed[best] for seed in own]
        tests = [_at(trial, "test", when) for trial in chosen]
        row[when] = {
            "choice": best,
            "lr": chosen[0]["lr"],
            "edge": len(rates) > 1 and chosen[0]["lr"] in (rates[0], rates[-1]),
            "number": chosen[0]["number"],
            "tests": tests,
            "test": estimate(tests),
            "steps": [_at(trial, "steps", when) for trial in chosen],
        }
    return row


def _at(trial: dict, what: str, when: When) -> Any:
    """Of the network after the last look, or after the first of those that are best on validation; 0 for what diverged
    before it."""
    values = trial["validation"]
    if not values or (when == "end" and trial["diverged"]):
        return 0
    return trial[what][-1 if when == "end" else values.index(max(values))]


def chosen(content: dict, data: str, method: str) -> list[dict]:
    """The trials, one for each seed, with what is chosen for the end."""
    number = content["summary"][data][method]["end"]["choice"]
    return [content["results"][piece(data, method, seed)]["trials"][number] for seed in content["config"]["seeds"]]


def _told(content: dict, data: str, method: str) -> list[dict]:
    return [trial["weights"] for trial in chosen(content, data, method) if trial["weights"]]


def main_table(content: dict) -> Table:
    """Test accuracy of every method on all data."""
    summary, methods = content["summary"], content["config"]["methods"]
    compared = PLAIN in methods
    header = ["method", *(f"{data}, {title}" for data in summary for title in TITLES.values())]
    header += [f"cost, {data}" for data in summary if compared]
    rows = []
    for method in methods:
        own = [found[method] for found in summary.values()]
        costs = [f"{row['cost']:.1f} x" if "cost" in row else "" for row in own if compared]
        rows.append([METHODS[method].title, *(fixed(row[when]["test"]) for row in own for when in TITLES), *costs])
    return header, rows


def differences(content: dict) -> Table:
    summary, rows = content["summary"], []
    for method in content["config"]["methods"]:
        if method != BOTH:
            found = [own[method][when]["minus_both"] for own in summary.values() for when in TITLES]
            rows.append([METHODS[method].title, *(fixed(value, signed=True) for value in found)])
    return ["method", *(f"{data}, {title}" for data in summary for title in TITLES.values())], rows


def told_apart(content: dict) -> Table:
    """How weights tell right labels from wrong ones, in the training that is chosen for its end."""
    rows = []
    for data in content["summary"]:
        for method in content["config"]["methods"]:
            if told := _told(content, data, method):
                found = [(w["auc"], w["right"]["mean"], w["wrong"]["mean"]) for w in told]
                cells = [fixed(estimate(list(values)), 2) for values in zip(*found, strict=True)]
                rows.append([f"{data}: {METHODS[method].title}", *cells])
    return ["method", "AUC", "weight of right labels", "weight of wrong labels"], rows


def choices(content: dict) -> Table:
    rows = []
    for data, methods in content["summary"].items():
        for method, row in methods.items():
            cells = [_choice(row[when]) for when in TITLES]
            counts = [f"{mean(row['stopped']['steps']):.0f}", f"{row['tried']}", f"{row['diverged']}"]
            rows.append([f"{data}: {METHODS[method].title}", *cells, *counts, f"{row['seconds']:.2f}"])
    header = ["method", "lr and number, at the end", "lr and number, stopped early", "stopped after step (mean)"]
    return [*header, "tried", "diverged", "seconds"], rows


def _choice(row: dict) -> str:
    number = "" if row["number"] is None else f"; {row['number']:g}"
    return f"{row['lr']:g}{' (edge)' if row['edge'] else ''}{number}"


def accuracies(content: dict) -> dict[str, dict[str, Curve]]:
    """Two panels for each data set: with and without learned weights, both with plain training and the oracle."""
    panels = {}
    for data, rows in content["summary"].items():
        for heading, learned in (("no learned weights", False), ("learned weights", True)):
            named = {}
            for method in rows:
                trials = chosen(content, data, method)
                shown = method in (BOTH, ORACLE) or (METHODS[method].start is not None) == learned
                if shown and not any(trial["diverged"] for trial in trials):
                    named[METHODS[method].title] = mean_curve(trials[0]["steps"], [trial["test"] for trial in trials])
            panels |= {f"{data}: {heading}": named} if named else {}
    return panels


def shares(content: dict) -> dict[str, dict[str, Curve]]:
    """Of learned weights: small-loss selection has but two."""
    middles = [HIGHEST / BINS * (n + 0.5) for n in range(BINS)]
    return {
        f"{data}: {METHODS[method].title}": {
            f"{name} labels": mean_curve(middles, [weights[name]["bins"] for weights in told])
            for name in ("right", "wrong")
        }
        for data, rows in content["summary"].items()
        for method in rows
        if METHODS[method].start is not None and (told := _told(content, data, method))
    }


def functions(content: dict) -> dict[str, dict[str, Curve]]:
    """Of the Meta-Weight-Net."""
    panels = {
        data: {
            METHODS[method].title: mean_curve(LOSSES, [weights["function"] for weights in told])
            for method in rows
            if METHODS[method].loss is weighted_by_net and (told := _told(content, data, method))
        }
        for data, rows in content["summary"].items()
    }
    return {data: named for data, named in panels.items() if named}


def setting(content: dict) -> str:
    """What was done."""
    config, data = content["config"], content["data"]
    sets = "; ".join(
        f"{name}: {size['noisy']} noisy, {size['clean']} clean, {size['validation']} validation, {size['test']} test "
        f"({data['most_frequent'][name]:g} % have the most frequent label)"
        for name, size in data["sizes"].items()
    )
    return (
        f"{100 * NOISE:g} % of the labels of the noisy set are wrong: any other class, by chance. Examples: {sets}. "
        "Clean and validation labels are as the data set gives them; the validation set serves choices alone, the same "
        f"for all methods. A network of one hidden layer of {HIDDEN} is trained for {config['steps']} steps of SGD "
        f"with momentum {MOMENTUM:g}, on {BATCH} noisy examples a step. What is trained on the clean set too has "
        f"{CLEAN_BATCH} of it in a step, whose loss counts {CLEAN_SHARE:g} against {1 - CLEAN_SHARE:g}. A "
        "hypergradient is that of the loss on the whole clean set, through 1 step, by `hft.bilevel`; the step itself "
        "is taken with the weights before their move. Small-loss selection is told the share of wrong labels, and "
        f"comes to drop it in the first {100 * RAMP:g} % of the steps."
    )


def write_report(record: RunRecord) -> None:
    """The summary, the report and its figures, from the record alone."""
    content, methods = record.content, record.content["config"]["methods"]
    content["summary"] = summarise(content)
    apart = told_apart(content)
    figures = (
        ("accuracy.png", accuracies(content), "step", "test accuracy (%)",
         "Test accuracy over training, with what is chosen for the end: where a line falls, more steps do harm"),
        ("weights.png", shares(content), "weight, relative to the mean (last point: all above)",
         "share of the examples", "Weights of the noisy examples at the end: the further the two lines are apart, the "
         "better wrong labels are told from right ones"),
        ("function.png", functions(content), "loss of an example", "its weight, relative to the mean",
         "What the Meta-Weight-Net has learned: where a line falls, an example of a higher loss counts less"),
    )  # fmt: skip
    drawn = [figure for figure in figures if figure[1]]  # only those that there is something for
    for file, panels, x, y, _ in drawn:
        curves(record.folder / file, panels, x, y)
    write(
        record,
        "Learning from wrong labels",
        setting(content),
        bullets(f"{METHODS[name].title}: {METHODS[name].about}." for name in methods),
        main_table(content),
        "Test accuracy in %, mean ± standard error over the seeds. At the end: after the last step. Stopped early: "
        "after the step at which validation accuracy was best. Learning rate and the method's own number are chosen "
        "for each of the two anew, by mean validation accuracy. Cost: seconds of training over those of "
        f"{METHODS[PLAIN].title!r}.",
        f"Points of test accuracy above {METHODS[BOTH].title}, seed by seed:" if BOTH in methods else None,
        differences(content) if BOTH in methods else None,
        "How the noisy examples are weighed at the end. AUC: the chance that of two examples, one with a right and one "
        "with a wrong label, the right one weighs more (for small-loss selection: has the smaller loss). Weights are "
        "relative to the mean of all; those of small-loss selection are kept or not."
        if apart[1]
        else None,
        apart if apart[1] else None,
        "What was chosen. Number: the strength of label smoothing, or the learning rate of what weighs the examples. "
        "Where the learning rate is at an edge of those that were tried, a better one may lie beyond. Tried: settings, "
        "each with all seeds; seconds: of the processor, mean of a training:",
        choices(content),
        *(f"![{caption}]({file})" for file, *_, caption in drawn),
    )
