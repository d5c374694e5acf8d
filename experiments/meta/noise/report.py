"""report.md and its tables."""

from collections.abc import Callable
from statistics import mean

from experiments.common import checkpoint
from experiments.common.estimate import estimate, shown
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.meta.noise.methods import METHODS
from experiments.meta.noise.pictures import draw
from experiments.meta.noise.summary import BOTH, NOISY, chosen, problem_title, summarise

TITLES = {"end": "at the end", "stopped": "stopped early"}
KINDS = {"uniform": "any other class, by chance", "pair": "always the next class"}


def write(record: RunRecord) -> None:
    """The summary, the report and its figures, from the record alone."""
    content = record.content
    content["summary"] = summarise(content)
    figures = draw(content, record.folder)
    lines = [
        "# Learning from wrong labels",
        "",
        *setting(content),
        "",
        *markdown(*main_table(content)),
        "",
        "Test accuracy in %, mean ± standard error over the seeds. At the end: after the last step. Stopped early: "
        "after the step at which validation accuracy was best. Learning rate and the method's own number are chosen "
        "for each of the two anew, by mean validation accuracy. Cost: seconds of training over those of "
        f"{METHODS[NOISY].title!r}.",
        "",
        *_differences(content),
        *_told_apart(content),
        *_choices(content),
        *(line for file, text in figures.items() for line in (f"![{text}]({file})", "")),
        *provenance(content),
    ]
    checkpoint.write_text(record.folder / "report.md", "\n".join(lines) + "\n")


def setting(content: dict) -> list[str]:
    """What was done, from the config."""
    config, sizes = content["config"], content["data"]["sizes"]
    sets = "; ".join(
        f"{name}: {size['noisy']} noisy, {size['clean']} clean, {size['validation']} validation, {size['test']} test "
        f"({content['data']['most_frequent'][name]:g} % have the most frequent label)"
        for name, size in sizes.items()
    )
    kinds = ", and in turn ".join(KINDS[kind] for kind in config["kinds"])
    return [
        f"{100 * config['noise']:g} % of the labels of the noisy set are wrong: {kinds}. Examples: {sets}. Clean and "
        "validation labels are as the data set gives them; the validation set serves choices alone, the same for all "
        "methods. A network of "
        f"one hidden layer of {config['hidden']} is trained for {config['steps']} steps of SGD with momentum "
        f"{config['momentum']:g}, on {config['batch']} noisy examples a step. What is trained on the clean set too has "
        f"{config['clean_batch']} of it in a step, whose loss counts {config['clean_share']:g} against "
        f"{1 - config['clean_share']:g}. A hypergradient is that of the loss on the whole clean set, through "
        f"{config['inner_steps']} step{'s' if config['inner_steps'] > 1 else ''}, by `hft.bilevel`; the step itself "
        "is taken with the weights before their move. Small-loss selection is told the share of wrong labels, and "
        f"comes to drop it in the first {100 * config['ramp']:g} % of the steps.",
        "",
        *(
            f"- {METHODS[name].title}: {METHODS[name].about}."
            for name in config["methods"]
        ),
    ]  # fmt: skip


def main_table(content: dict) -> tuple[list[str], list[list[str]]]:
    """Test accuracy of every method on every problem."""
    summary = content["summary"]
    header = ["method", *(f"{problem_title(content, p)}, {TITLES[when]}" for p in summary for when in TITLES)]
    compared = NOISY in content["config"]["methods"]
    header += [f"cost, {problem_title(content, problem)}" for problem in summary if compared]

    def row(method: str) -> list[str]:
        own = [rows[method] for rows in summary.values()]
        costs = [f"{row['cost']:.1f} x" if "cost" in row else "" for row in own if compared]
        return [METHODS[method].title, *(shown(row[when]["test"]) for row in own for when in TITLES), *costs]

    return header, [row(method) for method in content["config"]["methods"]]


def _differences(content: dict) -> list[str]:
    summary, methods = content["summary"], content["config"]["methods"]
    if BOTH not in methods:
        return []

    def row(method: str) -> list[str]:
        cells = [shown(rows[method][when]["minus_both"], signed=True) for rows in summary.values() for when in TITLES]
        return [METHODS[method].title, *cells]

    header = ["method", *(f"{problem_title(content, p)}, {TITLES[when]}" for p in summary for when in TITLES)]
    return [
        f"Points of test accuracy above {METHODS[BOTH].title}, seed by seed:",
        "",
        *markdown(header, [row(method) for method in methods if method != BOTH]),
        "",
    ]


def _told_apart(content: dict) -> list[str]:
    """How weights tell right labels from wrong ones, in the training that is chosen for its end."""
    rows = []
    for problem in content["summary"]:
        for method in content["config"]["methods"]:
            told = [trial["weights"] for trial in chosen(content, problem, method) if trial["weights"]]
            if told:
                picks: list[Callable[[dict], float]] = [
                    lambda w: w["auc"], lambda w: w["right"]["mean"], lambda w: w["wrong"]["mean"],
                ]  # fmt: skip
                cells = [_fine(estimate([pick(weights) for weights in told])) for pick in picks]
                rows.append([f"{problem_title(content, problem)}: {METHODS[method].title}", *cells])
    if not rows:
        return []
    return [
        "How the noisy examples are weighed at the end. AUC: the chance that of two examples, one with a right and one "
        "with a wrong label, the right one weighs more (for small-loss selection: has the smaller loss). Weights are "
        "relative to the mean of all; those of small-loss selection are kept or not.",
        "",
        *markdown(["method", "AUC", "weight of right labels", "weight of wrong labels"], rows),
        "",
    ]


def _fine(value: tuple[float, float | None]) -> str:
    return f"{value[0]:.2f}" if value[1] is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def _choices(content: dict) -> list[str]:
    rows = []
    for problem, methods in content["summary"].items():
        for method, row in methods.items():
            cells = [_choice(row[when]) for when in TITLES]
            steps = f"{mean(row['stopped']['steps']):.0f}"
            counts = [f"{row['tried']}", f"{row['diverged']}", f"{row['seconds']:.2f}"]
            rows.append([f"{problem_title(content, problem)}: {METHODS[method].title}", *cells, steps, *counts])
    header = ["method", "lr and number, at the end", "lr and number, stopped early", "stopped after step (mean)"]
    return [
        "What was chosen. Number: the strength of label smoothing, or the learning rate of what weighs the examples. "
        "Where the learning rate is at an edge of those that were tried, a better one may lie beyond. Tried: settings, "
        "each with all seeds; seconds: of the processor, mean of a training:",
        "",
        *markdown([*header, "tried", "diverged", "seconds"], rows),
        "",
    ]


def _choice(row: dict) -> str:
    number = "" if row["number"] is None else f"; {row['number']:g}"
    return f"{row['lr']:g}{' (edge)' if row['edge'] else ''}{number}"
