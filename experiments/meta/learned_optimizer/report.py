"""report.md, its figures and the table, from what the record holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from experiments.common import checkpoint
from experiments.common.estimate import Estimate
from experiments.common.figures import Curve, curves
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.meta.learned_optimizer.problems import PROBLEMS
from experiments.meta.learned_optimizer.rule import FIRST_RATE
from experiments.meta.learned_optimizer.summary import TITLES, summarise
from experiments.meta.learned_optimizer.tasks import BATCH, DEPTHS, SCALES, WIDTHS
from experiments.meta.learned_optimizer.testing import GRIDS, POINTS, WORST


def short(value: Estimate, digits: int = 3) -> str:
    """So many digits of the mean that matter, and one of its error."""
    number = f"{value[0]:.{digits}g}"
    return number if value[1] is None else f"{number} ± {value[1]:.1g}"


def table(content: dict) -> tuple[list[str], list[list[str]]]:
    """One row for each problem and optimizer."""
    header = ["problem", "optimizer", "lr", "loss", "/ tuned Adam's", "steps to it", "accuracy", "ms"]
    rows = []
    for name, problem in content["summary"]["problems"].items():
        for row, found in problem["rows"].items():
            title = TITLES[row] + (f" ({found['diverged']} of {found['runs']} diverged)" if found["diverged"] else "")
            rows.append(
                [
                    PROBLEMS[name].title, title,
                    "" if found["rate"] is None else f"{found['rate']:g}" + ("*" if row in problem["edges"] else ""),
                    short(found["loss"]), _factor(found["ratio"]), _reached(found, problem["steps"]),
                    short(found["accuracy"]), f"{1000 * found['seconds_a_step']:.2f}",
                ]
            )  # fmt: skip
    return header, rows


def _factor(ratio: Estimate) -> str:
    """The geometric mean, and how far a standard error of the logarithm reaches."""
    middle, error = ratio
    ends = "" if error is None else f" ({_plain(math.exp(middle - error))} to {_plain(math.exp(middle + error))})"
    return _plain(math.exp(middle)) + ends


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _reached(found: Mapping, steps: int) -> str:
    at, runs = found["reached"], found["runs"]
    if not at:
        return f"not in {steps}"
    return f"{sum(at) / len(at):.0f}" + ("" if len(at) == runs else f" ({len(at)} of {runs})")


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    digits, digits_test = data["sizes"]["digits"]
    texts, texts_test = data["sizes"].get("tweets", (0, 0))
    words = f", and {texts} tweets as weights of words ({texts_test} for testing)" if texts else ""
    return (
        f"The update rule is a network of {config['hidden']} hidden units that gives each weight its step; its weights "
        "are hyperparameters, and `hft.bilevel` moves them. It begins as Adam's direction with a rate of "
        f"{FIRST_RATE:g}, and sees the number of the step. Meta-training: {config['episodes']} episodes, each with "
        f"{config['tasks']} new tasks: networks of {_words(DEPTHS)} hidden layers of {_words(WIDTHS)} units, initial "
        f"weights {SCALES[0]:g} to {SCALES[1]:g} times He's, half of {data['meta_digits']} digits with random labels, "
        f"{BATCH} examples a step. An episode has up to {config['first_length']} steps at first and up to "
        f"{config['longest']} from half of meta-training on. The meta-loss is the logarithm of the training loss after "
        f"each segment of {config['segment']} steps; a meta-gradient goes through one segment. Of the "
        f"{config['checks'] + 1} checks on other such tasks, the rule that scored best is kept. By ZeroOrder, with one "
        "seed: "
        f"{config['evolution_episodes']} episodes.\n\n"
        f"Test problems have other data: {digits} digits that no meta-training task had ({digits_test} for testing)"
        f"{words}. Loss: on all training examples, the mean of the last tenth of the curve; {config['steps']} steps, "
        f"{config['times_longer']} times as many on the "
        f'problem "longer". Learning rates of Adam: {_range("adam")}; of SGD with momentum 0.9: {_range("momentum")}; '
        'each twice the one before; "tuned" is the one with the least mean loss at the end on that very problem, with '
        "the very seeds that are reported, which favours it; cosine: a learning rate that falls to zero over the steps "
        "of "
        'the problem, whose number the learned rule was meta-trained on, but for "longer". One lr: for all problems, '
        "the best on the tasks of the checks. The learned "
        "rule has no number that is set by problem."
    )


def _words(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


def _range(kind: str) -> str:
    return f"{GRIDS[kind][0]:g} to {GRIDS[kind][-1]:g}"


def costs(summary: Mapping, config: Mapping) -> tuple[list[str], list[list[str]]]:
    """Meta-training beside the grids."""
    header = ["what", "for", "seconds", "steps of training", "trainings at once"]
    rates, tasks = len(GRIDS["adam"]), str(config["tasks"])
    rows = [
        [f"meta-training and checks, {TITLES[name]}", "all problems", short(cost["seconds"]), f"{cost['steps']:.0f}",
         tasks]
        for name, cost in summary["costs"].items()
    ]  # fmt: skip
    rows.append(
        ["one lr of Adam for all", "all problems", f"{summary['one_rate']['seconds']:.3g}",
         f"{summary['one_rate']['steps']}", tasks]
    )  # fmt: skip
    rows.append(
        [
            f"a grid of {rates} lrs",
            f"one problem of {config['steps']} steps",
            f"{summary['grid_seconds']:.3g}",
            f"{config['steps']}",
            str(rates),
        ]
    )
    return header, rows


def write_report(record: RunRecord) -> None:
    content, folder = record.content, record.folder
    summary = content["summary"] = summarise(content)
    config, seeds = content["config"], content["config"]["seeds"]
    panels = {  # curves are drawn and not kept: the results have them already
        PROBLEMS[name].title: {TITLES[row]: Curve(*_band(found.pop("curve"))) for row, found in problem["rows"].items()}
        for name, problem in summary["problems"].items()
    }
    curves(folder / "training.png", panels, "step", "training loss", log_y=True)
    curves(
        folder / "meta-loss.png",
        {f"by {unit}": _meta(summary, column) for column, unit in enumerate(("episodes", "seconds"))},
        "meta-training", "mean of ln(training loss)",
    )  # fmt: skip
    skipped = sum(cost["skipped"] for cost in summary["costs"].values())
    pairs = f"{config['samples']} antithetic pairs, sigma {config['sigma']:g}"
    one = f" {TITLES['evolution']}: seed {seeds[0]} alone, {pairs}." if "evolution" in summary["costs"] else ""
    error = "mean ± standard error over seeds " if len(seeds) > 1 else "seed "
    lines = [
        "# A learned optimizer",
        "",
        setting(content),
        "",
        f"Values are {error}{', '.join(map(str, seeds))}; a seed is one meta-training, and one choice of weights and "
        f"order on the test problem.{one} / tuned Adam's: the ratio of the losses, geometric mean over seeds "
        "(and one standard error to either side), which one bad seed moves less than it does a mean loss. Steps to it: "
        "those after which the curve, taken at "
        f"{POINTS} points, is first at or below the final loss of tuned Adam with the same seed; in brackets how many "
        f"runs get there. A loss above {WORST:g} counts as {WORST:g}: diverged. A star: the best lr is at an edge of "
        "its grid. Accuracy (%) is that on the test part at the end; ms are milliseconds of a step of one training.",
        "",
        *markdown(*table(content)),
        "",
        "![Training loss by step and problem: the lower a line, the better the optimizer](training.png)",
        "",
        f"*Training loss on all training examples, {error.replace('± ', 'and ')}{', '.join(map(str, seeds))}.*",
        "",
        "![Meta-loss over meta-training: below the level line, a learned rule is better than Adam with one lr]"
        "(meta-loss.png)",
        "",
        f"*Mean logarithm of the loss over {config['longest']} steps, on tasks that meta-training does not have. "
        f"Adam has the learning rate {summary['shared_rate']:g}, which is best there.*",
        "",
        "## What it takes",
        "",
        *markdown(*costs(summary, config)),
        "",
        "Seconds, of the processor, are those of one seed; of the grid the mean over problems and optimizers. "
        f"ZeroOrder trains each segment {2 * config['samples']} times more. Moves of a rule that were left out since "
        "they "
        f"were not finite: {skipped}.",
        "",
        *provenance(content),
    ]  # fmt: skip
    checkpoint.write_text(folder / "report.md", "\n".join(lines) + "\n")


def _meta(summary: Mapping, column: int) -> dict[str, Curve]:
    """The meta-loss over the episodes or the seconds, and that of Adam."""
    found = {TITLES[name]: Curve(*_band([c[column], *c[2:]])) for name, c in summary["meta_loss"].items()}
    x = sorted({x for curve in found.values() for x in (curve.x[0], curve.x[-1])})
    return found | {TITLES["one_rate"]: Curve(x, [summary["shared_score"]] * len(x))}


def _band(found: list[list]) -> tuple[list, list, list | None]:
    """x, means and errors, which a single seed does not have."""
    x, means, errors = found
    return x, means, None if errors[0] is None else errors
