"""The figures of the report."""

from pathlib import Path

from experiments.common.figures import Curve, curves, mean_curve
from experiments.meta.noise.methods import METHODS, weighted_by_net
from experiments.meta.noise.summary import BOTH, ORACLE, chosen, problem_title
from experiments.meta.noise.weights import BINS, HIGHEST, LOSSES


def draw(content: dict, folder: Path) -> dict[str, str]:
    """By file what each shows; only those that there is something for."""
    accuracy, shares, functions = _accuracy(content), _shares(content), _functions(content)
    drawn = {}
    if accuracy:
        drawn["accuracy.png"] = (
            "Test accuracy over training, with what is chosen for the end: where a line falls, more steps do harm"
        )
        curves(folder / "accuracy.png", accuracy, "step", "test accuracy (%)")
    if shares:
        drawn["weights.png"] = (
            "Weights of the noisy examples at the end: the further the two lines are apart, the better wrong labels "
            "are told from right ones"
        )
        weight = "weight, relative to the mean (last point: all above)"
        curves(folder / "weights.png", shares, weight, "share of the examples")
    if functions:
        drawn["function.png"] = (
            "What the Meta-Weight-Net has learned: where a line falls, an example of a higher loss counts less"
        )
        curves(folder / "function.png", functions, "loss of an example", "its weight, relative to the mean")
    return drawn


def _accuracy(content: dict) -> dict[str, dict[str, Curve]]:
    """Two panels for each problem: with and without learned weights, both with plain training and the oracle."""
    panels = {}
    for problem, rows in content["summary"].items():
        for heading, learned in (("no learned weights", False), ("learned weights", True)):
            named = {}
            for method in rows:
                trials = chosen(content, problem, method)
                shown = method in (BOTH, ORACLE) or (METHODS[method].start is not None) == learned
                if shown and not any(trial["diverged"] for trial in trials):
                    named[METHODS[method].title] = mean_curve(trials[0]["steps"], [trial["test"] for trial in trials])
            panels |= {f"{problem_title(content, problem)}: {heading}": named} if named else {}
    return panels


def _shares(content: dict) -> dict[str, dict[str, Curve]]:
    """Of learned weights: small-loss selection has but two."""
    middles = [HIGHEST / BINS * (n + 0.5) for n in range(BINS)]
    panels = {}
    for problem, rows in content["summary"].items():
        for method in rows:
            told = _told(content, problem, method)
            if told and METHODS[method].start is not None:
                panels[f"{problem_title(content, problem)}: {METHODS[method].title}"] = {
                    f"{name} labels": mean_curve(middles, [weights[name]["bins"] for weights in told])
                    for name in ("right", "wrong")
                }
    return panels


def _functions(content: dict) -> dict[str, dict[str, Curve]]:
    panels = {}
    for problem, rows in content["summary"].items():
        named = {
            METHODS[method].title: mean_curve(LOSSES, [weights["function"] for weights in told])
            for method in rows
            if METHODS[method].loss is weighted_by_net and (told := _told(content, problem, method))
        }
        panels |= {problem_title(content, problem): named} if named else {}
    return panels


def _told(content: dict, problem: str, method: str) -> list[dict]:
    return [trial["weights"] for trial in chosen(content, problem, method) if trial["weights"]]
