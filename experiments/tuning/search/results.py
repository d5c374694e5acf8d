"""From the curves of all pieces to means over seeds, gains over the default, and who is best."""

import math
from collections.abc import Mapping

from experiments.common.estimate import Estimate, estimate
from experiments.tuning.search.contenders import BUDGETS, CONTENDERS, PROBLEMS

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
        best = min((name for name in rows if rows[name]), key=lambda name: rows[name]["loss"][0])
        problems[problem] = {
            "numbers": results_of(content, problem, best)[0]["numbers"],
            "rows": rows,
            "best": best,
            "level": level_with(content, problem, best, [name for name in rows if rows[name]]),
        }
    return {"problems": problems}


def level_with(content: dict, problem: str, best: str, names: list[str]) -> list[str]:
    """Those whose test loss, seed by seed, is above the best one's by no more than one standard error."""
    level = []
    for name in names:
        pairs = zip(ends(content, problem, name, LOSS), ends(content, problem, best, LOSS), strict=True)
        difference, error = estimate([own - least for own, least in pairs])
        if name != best and error is not None and difference <= error:
            level.append(name)
    return level


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


def by_size(content: dict) -> Mapping[str, list[tuple[int, Estimate]]]:
    """For each contender its gain by the number of hyperparameters: seed by seed a mean over the problems of that
    size, where it took part in all of them."""
    numbers = {name: problem["numbers"] for name, problem in content["summary"]["problems"].items()}
    found: dict[str, list[tuple[int, Estimate]]] = {}
    for contender in content["config"]["contenders"]:
        if contender == "default":
            continue
        for size in sorted(set(numbers.values())):
            of_size = [name for name, number in numbers.items() if number == size]
            if all(contender in contenders_of(content, name) for name in of_size):
                each = [gains(content, name, contender) for name in of_size]
                means = [sum(seed) / len(seed) for seed in zip(*each, strict=True)]
                if all(map(math.isfinite, means)):
                    found.setdefault(CONTENDERS[contender].title, []).append((size, estimate(means)))
    return found
