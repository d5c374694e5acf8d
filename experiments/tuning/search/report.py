"""From the curves of all pieces to report.md: means over seeds, gains over the default, and who is best where."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.estimate import estimate
from experiments.common.figures import dots
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, paired, write
from experiments.tuning.search.contenders import CONTENDERS, GROUPS, LEFT_OUT, PROBLEMS, SECONDS
from experiments.tuning.search.descents import ONLINE_RATE, PATIENCE, RATES, SEARCHED, TOP_RATE

VALIDATION, LOSS, ACCURACY = 1, 2, 3  # of a point of a curve, which begins with its second


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
        rows: dict[str, Any] = {}
        for name in PROBLEMS[problem].on(content["config"]["contenders"]):
            losses = ends(content, problem, name, LOSS)
            rows[name] = None if not all(map(math.isfinite, losses)) else {
                "loss": estimate(losses),
                "accuracy": estimate(ends(content, problem, name, ACCURACY)),
                "validation": estimate(ends(content, problem, name, VALIDATION)),
                "gain": estimate(gains(content, problem, name)),
                "trials": estimate([float(result["trials"]) for result in results_of(content, problem, name)]),
            }  # fmt: skip
        chosen = {group: chosen_of(names, rows) for group, names in GROUPS.items()}
        search, other = (None if name is None else ends(content, problem, name, LOSS) for name in chosen.values())
        problems[problem] = {
            "numbers": results_of(content, problem, "default")[0]["numbers"],
            "rows": rows,
            "chosen": chosen,
            "apart": None if search is None or other is None else paired(other, search),
        }
    return {"problems": problems}


def chosen_of(names: Sequence[str], rows: Mapping[str, Any]) -> str | None:
    """The one that a user would choose: of the lowest mean validation loss. By test loss, the larger group would have
    the better odds."""
    return min((name for name in names if rows.get(name)), key=lambda name: rows[name]["validation"][0], default=None)


def _title(content: dict, problem: str) -> str:
    return f"{PROBLEMS[problem].title} ({content['summary']['problems'][problem]['numbers']:,})"


def table(content: dict) -> Table:
    """A row for each problem: the default, and the one chosen of each group."""
    rows = []
    for problem, found in content["summary"]["problems"].items():
        default = found["rows"]["default"]
        row = [_title(content, problem), fixed(default["loss"], 3) if default else "diverged"]
        for name in found["chosen"].values():
            row += ["", ""] if name is None else [CONTENDERS[name].title, fixed(found["rows"][name]["loss"], 3)]
        rows.append([*row, "" if found["apart"] is None else fixed(found["apart"], 3)])
    return ["problem", "default", "search", "test loss", "hypergradients", "test loss", "difference"], rows


def all_of(content: dict) -> Table:
    """A row for each problem and contender."""
    rows = []
    for problem, found in content["summary"]["problems"].items():
        for name, row in found["rows"].items():
            start = [_title(content, problem), CONTENDERS[name].title]
            if row is None:
                rows.append([*start, "diverged", "", "", "", ""])
                continue
            losses = [fixed(row["loss"], 3), fixed(row["accuracy"]), fixed(row["validation"], 3)]
            gain = "" if name == "default" else fixed(row["gain"])
            rows.append([*start, *losses, gain, f"{row['trials'][0]:.0f}"])
    return ["problem", "contender", "test loss", "accuracy (%)", "validation loss", "gain (%)", "trainings"], rows


def tally(content: dict) -> str:
    """How often each group's chosen one is the better by test loss."""
    found = [problem["apart"] for problem in content["summary"]["problems"].values() if problem["apart"] is not None]
    search, other = sum(mean > 0 for mean, _ in found), sum(mean < 0 for mean, _ in found)
    close = sum(error is not None and abs(mean) <= error for mean, error in found)
    single = len(content["config"]["seeds"]) == 1
    return (
        "Of each group the contender of the lowest mean validation loss is chosen. By mean test loss the chosen search "
        f"is the better one on {search} of {len(found)} problems, the chosen method by hypergradients on {other}; "
        + ("one seed, so no standard error." if single else f"they are within one standard error on {close} of them.")
    )


def setting(content: dict) -> str:
    threads = content["environment"]["threads"]
    on = "one thread" if threads == 1 else f"{threads} threads"
    return (
        f"Each contender has {content['config']['seconds']:g} s of wall time on {on} ({SECONDS['emoji']:g} s on emoji, "
        f"{SECONDS['pictures']:g} s where all of that network is trained) to find "
        "hyperparameters by the validation loss after a whole training; what it has found so far is tested while its "
        "clock stands still. All but the online ones tune the very run that is tested: initial "
        "weights and order of batches are fixed by the seed. All begin with the same default, and draw from the same "
        "ranges. Bilevel methods move the logarithm (the logit of what lies in (0, 1)) by Adam with the rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)}: the next one, from the best so far, after {PATIENCE} outer steps "
        "without a better one, and after "
        "the last from a random place. `search, then Unroll` is a random search over the few numbers for "
        f"{100 * SEARCHED:.0f} % of the time, then bilevel from the best. The online ones move hyperparameters at "
        f"every step of a single training along the one-step hypergradient, by Adam with the rate {ONLINE_RATE:g}, "
        f"and repeat it from random first values; that rate is moved by a further Adam ({TOP_RATE:g}) in the tower; "
        "what "
        "counts is the trained network. `last tenth` differentiates through the last tenth of the steps, so that of a "
        "schedule only the last tenth moves; Implicit takes 20 terms of Neumann's series over 10 batches, converged or "
        "not. TPE is Optuna's, whose first ten trials are random; Hyperband is Optuna's pruner on it, which validates "
        "after 1/27, 1/9, 1/3 and all of the steps, at full cost. Searches stay within their ranges, descents may "
        "leave them. Validation losses are those of the best of many trials."
    )


def write_report(record: RunRecord) -> None:
    content = record.content
    content["summary"] = summarise(content)
    problems = {problem: results_of(content, problem, "default")[0] for problem in content["config"]["problems"]}
    found = content["summary"]["problems"]
    rows = {
        _title(content, problem): {group: own["rows"][name]["gain"] for group, name in own["chosen"].items() if name}
        for problem, own in found.items()
    }
    dots(record.folder / "gain.png", rows, "test loss below the default's (%)")
    few = [f"{PROBLEMS[p].title}: {found['few']}" for p, found in problems.items() if found["numbers"] > 5]
    least = min(result["share_of_processor"] for result in content["results"].values())
    write(
        record,
        "Hypergradients and searches at equal time",
        setting(content),
        bullets(f"{PROBLEMS[p].title}: {PROBLEMS[p].about}; {found['steps']} steps" for p, found in problems.items()),
        "![Gain over the default, problem by problem: right of 0 it is better than the default](gain.png)",
        "Each dot, with its standard error, is the contender of its group that is chosen by its mean validation loss. "
        "In brackets, the number of hyperparameters: each is another problem with a default of its own.",
        tally(content) + " The default belongs to neither; the groups differ in size, and so in attempts.",
        table(content),
        "The last column is the test loss of the chosen method by hypergradients minus that of the chosen search, seed "
        "by seed. All contenders:",
        f"Mean ± standard error over seeds {', '.join(map(str, content['config']['seeds']))}. Gain: by how much the "
        "test loss is below that of the default, seed by seed. Trainings: those that came to their end in the time. "
        f"Processor time was at least {100 * least:.0f} % of wall time in every race; what is missing had another "
        "program.",
        all_of(content),
        f"Searches over a few numbers in place of many: {'; '.join(few)}." if few else None,
        LEFT_OUT,
    )
