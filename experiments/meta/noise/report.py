"""From the trials to report.md and its figure: what is chosen, and what it comes to on the test sets."""

from statistics import mean
from typing import Any

from experiments.common.estimate import estimate
from experiments.common.figures import Curve, curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, paired, write
from experiments.meta.noise.config import BATCH, CLEAN_BATCH, CLEAN_SHARE, HIDDEN, MOMENTUM, NOISE, RAMP
from experiments.meta.noise.methods import METHODS

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
        for method in METHODS:
            rows[method] = _row([content["results"][piece(data, method, s)]["trials"] for s in config["seeds"]])
        for row in rows.values():
            row["cost"] = row["seconds"] / rows[PLAIN]["seconds"]
            row["minus_both"] = paired(row["tests"], rows[BOTH]["tests"])
        found[data] = rows
    return found


def _row(own: list[list[dict]]) -> dict[str, Any]:
    """Of one method: `own` has the trials, in one order, for each seed."""
    rates = sorted({trial["lr"] for trial in own[0]})
    scores = [mean(_at_end(seed[k], "validation") for seed in own) for k in range(len(own[0]))]
    best = scores.index(max(scores))
    chosen = [seed[best] for seed in own]
    tests = [_at_end(trial, "test") for trial in chosen]
    return {
        "choice": best,
        "lr": chosen[0]["lr"],
        "edge": len(rates) > 1 and chosen[0]["lr"] in (rates[0], rates[-1]),
        "number": chosen[0]["number"],
        "tests": tests,
        "test": estimate(tests),
        "seconds": mean(trial["seconds"] for seed in own for trial in seed),
        "tried": len(own[0]),
        "diverged": sum(trial["diverged"] for seed in own for trial in seed),
    }


def _at_end(trial: dict, what: str) -> float:
    """After the last step; 0 for what diverged before it."""
    return 0 if trial["diverged"] else trial[what][-1]


def chosen(content: dict, data: str, method: str) -> list[dict]:
    """The trials, one for each seed, with what is chosen."""
    number = content["summary"][data][method]["choice"]
    return [content["results"][piece(data, method, seed)]["trials"][number] for seed in content["config"]["seeds"]]


def main_table(content: dict) -> Table:
    """Test accuracy of every method on all data."""
    header, rows = ["method"], []
    for data in content["summary"]:
        header += [data, f"minus {METHODS[BOTH].title}", "cost"]
    for method, about in METHODS.items():
        cells = []
        for own in (found[method] for found in content["summary"].values()):
            less = "" if method == BOTH else fixed(own["minus_both"], signed=True)
            cells += [fixed(own["test"]), less, f"{own['cost']:.1f} x"]
        rows.append([about.title, *cells])
    return header, rows


def told_apart(content: dict) -> Table:
    """How weights tell right labels from wrong ones."""
    rows = []
    for data in content["summary"]:
        for method, about in METHODS.items():
            if told := [trial["weights"] for trial in chosen(content, data, method) if trial["weights"]]:
                found = [(w["auc"], w["right"]["mean"], w["wrong"]["mean"]) for w in told]
                cells = [fixed(estimate(list(values)), 2) for values in zip(*found, strict=True)]
                rows.append([f"{data}: {about.title}", *cells])
    return ["method", "AUC", "weight of right labels", "weight of wrong labels"], rows


def choices(content: dict) -> Table:
    rows = []
    for data, methods in content["summary"].items():
        for method, row in methods.items():
            number = "" if row["number"] is None else f"; {row['number']:g}"
            choice = f"{row['lr']:g}{' (edge)' if row['edge'] else ''}{number}"
            counts = f"{row['tried']}", f"{row['diverged']}", f"{row['seconds']:.2f}"
            rows.append([f"{data}: {METHODS[method].title}", choice, *counts])
    return ["method", "lr and number", "tried", "diverged", "seconds"], rows


def accuracies(content: dict) -> dict[str, dict[str, Curve]]:
    """Two panels for each data set: with and without learned weights, both with plain training and the oracle."""
    panels = {}
    for data in content["summary"]:
        for heading, learned in (("no learned weights", False), ("learned weights", True)):
            named = {}
            for method, about in METHODS.items():
                trials = chosen(content, data, method)
                shown = method in (BOTH, ORACLE) or (about.start is not None) == learned
                if shown and not any(trial["diverged"] for trial in trials):
                    named[about.title] = mean_curve(trials[0]["steps"], [trial["test"] for trial in trials])
            panels[f"{data}: {heading}"] = named
    return {heading: named for heading, named in panels.items() if named}


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
    """The summary, the report and its figure, from the record alone."""
    content = record.content
    content["summary"] = summarise(content)
    curves(record.folder / "accuracy.png", accuracies(content), "step", "test accuracy (%)")
    write(
        record,
        "Learning from wrong labels",
        setting(content),
        bullets(f"{method.title}: {method.about}." for method in METHODS.values()),
        main_table(content),
        "Test accuracy in % after the last step, mean ± standard error over the seeds, and by how many points it is "
        f"above that of {METHODS[BOTH].title!r}, seed by seed. Learning rate and the method's own number are chosen by "
        f"mean validation accuracy. Cost: seconds of training over those of {METHODS[PLAIN].title!r}.",
        "How the noisy examples are weighed at the end. AUC: the chance that of two examples, one with a right and one "
        "with a wrong label, the right one weighs more (for small-loss selection: has the smaller loss). Weights are "
        "relative to the mean of all; those of small-loss selection are kept or not.",
        told_apart(content),
        "What was chosen. Number: the strength of label smoothing, or the learning rate of what weighs the examples. "
        "Where the learning rate is at an edge of those that were tried, a better one may lie beyond. Tried: settings, "
        "each with all seeds; seconds: of the processor, mean of a training:",
        choices(content),
        "![Test accuracy over training, with what is chosen: where a line falls, more steps do harm](accuracy.png)",
    )
