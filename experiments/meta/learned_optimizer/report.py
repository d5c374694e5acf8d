"""report.md, its figures and the table, from what the record holds."""

import math
from collections.abc import Mapping
from statistics import mean

from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import Curve, curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, over, significant, write
from experiments.meta.learned_optimizer.config import HIDDEN, POINTS, SEGMENT, SIGMA
from experiments.meta.learned_optimizer.problems import PROBLEMS
from experiments.meta.learned_optimizer.rule import FIRST_RATE
from experiments.meta.learned_optimizer.tasks import BATCH, DEPTHS, SCALES, WIDTHS
from experiments.meta.learned_optimizer.testing import DEFAULT, GRIDS, WORST

TITLES = {
    "learned": "learned, Unroll",
    "evolution": "learned, ZeroOrder",
    "adam": "Adam, tuned",
    "cosine": "Adam, cosine, tuned",
    "momentum": "momentum, tuned",
    "one_rate": "Adam, one lr",
    "default": "Adam, default lr",
}


def best_of(scores: list[float]) -> int:
    return min(range(len(scores)), key=scores.__getitem__)


def end_of(losses: list[float]) -> float:
    """The mean of a curve's last tenth: single points go up and down with the batches."""
    return mean(losses[-(len(losses) // 10) :])


def first_at(losses: list[float], goal: float, steps: int) -> int | None:
    """The step at which a curve is first down at `goal`, as far as its points tell."""
    place = next((k for k, loss in enumerate(losses) if loss <= goal), None)
    return None if place is None else place * steps // (len(losses) - 1)


def meta_trained(content: dict) -> dict[str, list[dict]]:
    """By how the rule was meta-trained: what it came to, by seed."""
    seeds, results = content["config"]["seeds"], content["results"]
    return {
        "learned": [results[f"unroll-seed{seed}"] for seed in seeds],
        "evolution": [results[f"evolution-seed{seeds[0]}"]],
    }


def runs_of(name: str, content: dict) -> tuple[dict[str, list[Mapping]], dict[str, float]]:
    """The trainings of every optimizer on a problem, by seed, and the learning rates of those that have one."""
    results = content["results"]
    runs = {row: [made["tests"][name] for made in found] for row, found in meta_trained(content).items()}
    places = {kind: (kind, results[f"{name}-{kind}"]["best"]) for kind in ("adam", "cosine", "momentum")}
    shared = best_of(results["one-rate"]["scores"])
    places |= {"one_rate": ("adam", shared), "default": ("adam", GRIDS["adam"].index(DEFAULT))}
    runs |= {row: results[f"{name}-{kind}"]["tests"][str(place)] for row, (kind, place) in places.items()}
    return runs, {row: GRIDS[kind][place] for row, (kind, place) in places.items()}


def summarise(content: dict) -> dict[str, dict[str, dict]]:
    """By problem and optimizer."""
    found = {}
    for name in content["config"]["problems"]:
        (runs, rates), times = runs_of(name, content), content["results"][f"{name}-seconds"]["seconds"]
        goal = [end_of(run["losses"]) for run in runs["adam"]]
        as_slow_as = {"evolution": "learned", "one_rate": "adam", "default": "adam"}
        rows = {row: _row(own, goal, steps_on(name, content)) for row, own in runs.items()}
        for row, values in rows.items():
            rate = rates.get(row)
            values["rate"], values["seconds_a_step"] = rate, times[as_slow_as.get(row, row)]
            values["edge"] = row in GRIDS and rate in (GRIDS[row][0], GRIDS[row][-1])
        found[name] = rows
    return found


def steps_on(name: str, content: dict) -> int:
    config = content["config"]
    return config["steps"] * (config["times_longer"] if PROBLEMS[name].longer else 1)


def _row(runs: list[Mapping], goal: list[float], steps: int) -> dict:
    ends = [end_of(run["losses"]) for run in runs]
    reached = [first_at(run["losses"], own, steps) for run, own in zip(runs, goal, strict=False)]
    ratios = [math.log(max(end, 1e-12) / max(own, 1e-12)) for end, own in zip(ends, goal, strict=False)]
    return {
        "loss": estimate(ends),
        "ratio": estimate(ratios),  # logarithm of its loss by that of tuned Adam, seed by seed
        "reached": [at for at in reached if at is not None],
        "runs": len(runs),
        "diverged": sum(run["losses"][-1] >= WORST for run in runs),
        "accuracy": estimate([run["accuracy"] for run in runs]),
    }


def table(content: dict) -> Table:
    """One row for each problem and optimizer."""
    rows = []
    for name, found in content["summary"].items():
        for row, own in found.items():
            diverged = f" ({own['diverged']} of {own['runs']} diverged)" if own["diverged"] else ""
            rate = "" if own["rate"] is None else f"{own['rate']:g}" + ("*" if own["edge"] else "")
            reached = f"not in {steps_on(name, content)}"
            if at := own["reached"]:
                reached = f"{mean(at):.0f}" + ("" if len(at) == own["runs"] else f" ({len(at)} of {own['runs']})")
            rows.append(
                [
                    PROBLEMS[name].title, TITLES[row] + diverged, rate, significant(own["loss"]), _factor(own["ratio"]),
                    reached, significant(own["accuracy"]), f"{1000 * own['seconds_a_step']:.2f}",
                ]
            )  # fmt: skip
    return ["problem", "optimizer", "lr", "loss", "/ tuned Adam's", "steps to it", "accuracy", "ms"], rows


def _factor(ratio: Estimate) -> str:
    """The geometric mean, and how far a standard error of the logarithm reaches."""
    middle, error = ratio
    ends = "" if error is None else f" ({_plain(math.exp(middle - error))} to {_plain(math.exp(middle + error))})"
    return _plain(math.exp(middle)) + ends


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def costs(content: dict) -> Table:
    """Meta-training beside the grids."""
    config, results = content["config"], content["results"]
    tasks, one_rate, rates = str(config["tasks"]), results["one-rate"], len(GRIDS["adam"])
    usual = [name for name in config["problems"] if not PROBLEMS[name].longer] or config["problems"]
    grids = [results[f"{name}-{kind}"]["seconds"] / len(config["seeds"]) for name in usual for kind in GRIDS]
    rows = []
    for name, made in meta_trained(content).items():
        seconds, steps = estimate([run["seconds"] for run in made]), mean(run["steps"] for run in made)
        what = f"meta-training and checks, {TITLES[name]}"
        rows.append([what, "all problems", significant(seconds), f"{steps:.0f}", tasks])
    return ["what", "for", "seconds", "steps of training", "trainings at once"], [
        *rows,
        ["one lr of Adam for all", "all problems", f"{one_rate['seconds']:.3g}", f"{one_rate['steps']}", tasks],
        [f"a grid of {rates} lrs", f"one problem of {config['steps']} steps", f"{mean(grids):.3g}",
         f"{config['steps']}", str(rates)],
    ]  # fmt: skip


def trainings(content: dict) -> dict[str, dict[str, Curve]]:
    """Losses by step, a panel for each problem."""
    panels = {}
    for name in content["config"]["problems"]:
        x = [k * steps_on(name, content) // POINTS for k in range(POINTS + 1)]
        panels[PROBLEMS[name].title] = {
            TITLES[row]: mean_curve(x, [run["losses"] for run in runs])
            for row, runs in runs_of(name, content)[0].items()
        }
    return panels


def meta_losses(content: dict) -> dict[str, dict[str, Curve]]:
    """Of the checks, over the episodes and over the seconds; and that of Adam with the one rate."""
    panels = {}
    for unit in ("episodes", "seconds"):
        named = {}
        for name, made in meta_trained(content).items():
            x = [episode for episode, _ in made[0]["checks"]]
            if unit == "seconds":
                x = [mean(at) for at in zip(*(run["check_seconds"] for run in made), strict=True)]
            named[TITLES[name]] = mean_curve(x, [[score for _, score in run["checks"]] for run in made])
        ends = sorted({x for line in named.values() for x in (line.x[0], line.x[-1])})
        level = min(content["results"]["one-rate"]["scores"])
        panels[f"by {unit}"] = named | {TITLES["one_rate"]: Curve(ends, [level] * len(ends))}
    return panels


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    digits, digits_test = data["sizes"]["digits"]
    texts, texts_test = data["sizes"].get("tweets", (0, 0))
    words = f", and {texts} tweets as weights of words ({texts_test} for testing)" if texts else ""
    return (
        f"The update rule is a network of {HIDDEN} hidden units that gives each weight its step; its weights "
        "are hyperparameters, and `hft.bilevel` moves them. It begins as Adam's direction with a rate of "
        f"{FIRST_RATE:g}, and sees the number of the step. Meta-training: {config['episodes']} episodes, each with "
        f"{config['tasks']} new tasks: networks of {_words(DEPTHS)} hidden layers of {_words(WIDTHS)} units, initial "
        f"weights {SCALES[0]:g} to {SCALES[1]:g} times He's, half of {data['meta_digits']} digits with random labels, "
        f"{BATCH} examples a step. An episode has up to {SEGMENT} steps at first and up to "
        f"{config['longest']} from half of meta-training on. The meta-loss is the logarithm of the training loss after "
        f"each segment of {SEGMENT} steps; a meta-gradient goes through one segment. Of the "
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


def write_report(record: RunRecord) -> None:
    content, folder = record.content, record.folder
    content["summary"] = summarise(content)
    config, seeds = content["config"], content["config"]["seeds"]
    curves(folder / "training.png", trainings(content), "step", "training loss", log_y=True)
    curves(folder / "meta-loss.png", meta_losses(content), "meta-training", "mean of ln(training loss)")
    skipped = sum(made["skipped"] for found in meta_trained(content).values() for made in found)
    shared = GRIDS["adam"][best_of(content["results"]["one-rate"]["scores"])]
    write(
        record,
        "A learned optimizer",
        setting(content),
        f"Values are {over(seeds)}; a seed is one meta-training, and one choice of weights and "
        f"order on the test problem. {TITLES['evolution']}: seed {seeds[0]} alone, {config['samples']} antithetic "
        f"pairs, sigma {SIGMA:g}. / tuned Adam's: the ratio of the losses, geometric mean over seeds "
        "(and one standard error to either side), which one bad seed moves less than it does a mean loss. Steps to it: "
        "those after which the curve, taken at "
        f"{POINTS} points, is first at or below the final loss of tuned Adam with the same seed; in brackets how many "
        f"runs get there. A loss above {WORST:g} counts as {WORST:g}: diverged. A star: the best lr is at an edge of "
        "its grid. Accuracy (%) is that on the test part at the end; ms are milliseconds of a step of one training.",
        table(content),
        "![Training loss by step and problem: the lower a line, the better the optimizer](training.png)",
        f"*Training loss on all training examples, {over(seeds).replace('± ', 'and ')}.*",
        "![Meta-loss over meta-training: below the level line, a learned rule is better than Adam with one lr]"
        "(meta-loss.png)",
        f"*Mean logarithm of the loss over {config['longest']} steps, on tasks that meta-training does not have. "
        f"Adam has the learning rate {shared:g}, which is best there.*",
        "## What it takes",
        costs(content),
        "Seconds, of the processor, are those of one seed; of the grid the mean over problems and optimizers. "
        f"ZeroOrder trains each segment {2 * config['samples']} times more. Moves of a rule that were left out since "
        f"they were not finite: {skipped}.",
    )
