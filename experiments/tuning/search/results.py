"""From the curves of all pieces to means over seeds, gains over the default, and who is chosen of each group."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.estimate import Estimate, estimate
from experiments.tuning.search.contenders import BUDGETS, CONTENDERS, GROUPS, PROBLEMS

SECONDS, VALIDATION, LOSS, ACCURACY = range(4)  # of a point of a curve
POINTS = 40  # of the common grid of times


def contenders_of(content: dict, problem: str) -> list[str]:
    return [name for name in content["config"]["contenders"] if name in PROBLEMS[problem].contenders]


def budget_of(content: dict, problem: str) -> float:
    return content["config"][BUDGETS[PROBLEMS[problem].data]]


def results_of(content: dict, problem: str, contender: str) -> list[dict]:
    """By seed."""
    return [content["results"][f"{problem}-{contender}-seed{seed}"] for seed in content["config"]["seeds"]]


def ends(content: dict, problem: str, contender: str, column: int) -> list[float]:
    """What each seed's last and best incumbent has; infinite where no training came out finite."""
    found = results_of(content, problem, contender)
    return [result["curve"][-1][column] if result["curve"] else math.inf for result in found]


def gains(content: dict, problem: str, contender: str) -> list[float]:
    """By how many percent each seed's test loss is below that of the default."""
    own, usual = (ends(content, problem, name, LOSS) for name in (contender, "default"))
    return [100 * (1 - loss / default) for loss, default in zip(own, usual, strict=True)]


def summarise(content: dict) -> dict:
    problems = {}
    for problem in content["config"]["problems"]:
        rows = {}
        for name in contenders_of(content, problem):
            losses = ends(content, problem, name, LOSS)
            if not all(map(math.isfinite, losses)):
                rows[name] = None
                continue
            rows[name] = {
                "loss": estimate(losses),
                "accuracy": estimate(ends(content, problem, name, ACCURACY)),
                "validation": estimate(ends(content, problem, name, VALIDATION)),
                "gain": estimate(gains(content, problem, name)),
                "trials": estimate([float(result["trials"]) for result in results_of(content, problem, name)]),
            }
        chosen = {group: chosen_of(names, rows) for group, names in GROUPS.items()}
        problems[problem] = {
            "numbers": results_of(content, problem, "default")[0]["numbers"],
            "rows": rows,
            "chosen": chosen,
            "apart": apart(content, problem, *chosen.values()),
        }
    return {"problems": problems}


def chosen_of(names: Sequence[str], rows: Mapping[str, Any]) -> str | None:
    """The one that a user would choose: of the lowest mean validation loss. By test loss, the larger group would have
    the better odds."""
    return min((name for name in names if rows.get(name)), key=lambda name: rows[name]["validation"][0], default=None)


def apart(content: dict, problem: str, first: str | None, second: str | None) -> Estimate | None:
    """By how much the test loss of the second is above that of the first, seed by seed."""
    if first is None or second is None:
        return None
    pairs = zip(*(ends(content, problem, name, LOSS) for name in (first, second)), strict=True)
    return estimate([after - before for before, after in pairs])


def grid(budget: float) -> list[float]:
    """Times from a hundredth of the budget to all of it, evenly on a log axis."""
    return [budget * 10 ** (2 * (i / (POINTS - 1) - 1)) for i in range(POINTS)]


def at(curve: list[list[float]], seconds: float, column: int) -> float | None:
    """Of the incumbent at that time; None where there is none yet."""
    before = [point for point in curve if point[SECONDS] <= seconds]
    return before[-1][column] if before else None


def over_time(content: dict, problem: str, contender: str) -> list[tuple[float, Estimate]]:
    """Test loss where every seed has an incumbent; that of the default, which nobody has to look for, throughout."""
    if contender == "default":
        usual = estimate(ends(content, problem, contender, LOSS))
        return [(seconds, usual) for seconds in grid(budget_of(content, problem))]
    found = []
    for seconds in grid(budget_of(content, problem)):
        seeds = results_of(content, problem, contender)
        losses = [loss for seed in seeds if (loss := at(seed["curve"], seconds, LOSS)) is not None]
        if len(losses) == len(seeds):
            found.append((seconds, estimate(losses)))
    return found


def by_size(content: dict) -> dict[str, list[tuple[int, Estimate]]]:
    """For each contender its gain by the number of hyperparameters."""
    problems = content["summary"]["problems"]
    names = [name for name in content["config"]["contenders"] if name != "default"]
    lines = {
        CONTENDERS[name].title: mean_gains(
            content, {problem: name if name in contenders_of(content, problem) else None for problem in problems}
        )
        for name in names
    }
    return {title: line for title, line in lines.items() if line}


def chosen_by_size(content: dict) -> dict[str, list[tuple[int, Estimate]]]:
    """The same for the one that is chosen of each group, problem by problem."""
    problems = content["summary"]["problems"]
    return {
        f"{group}, chosen": mean_gains(content, {name: found["chosen"][group] for name, found in problems.items()})
        for group in GROUPS
    }


def mean_gains(content: dict, contender_of: Mapping[str, str | None]) -> list[tuple[int, Estimate]]:
    """By number of hyperparameters: seed by seed a mean over the problems of that number, where all have a contender
    whose training came out finite."""
    problems = content["summary"]["problems"]
    found = []
    for size in sorted({problem["numbers"] for problem in problems.values()}):
        of_size = [(name, contender_of[name]) for name in problems if problems[name]["numbers"] == size]
        each = [gains(content, name, contender) for name, contender in of_size if contender is not None]
        means = [sum(seed) / len(seed) for seed in zip(*each, strict=True)]
        if len(each) == len(of_size) and all(map(math.isfinite, means)):
            found.append((size, estimate(means)))
    return found
