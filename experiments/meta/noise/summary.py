"""From the trials to the numbers of the tables: what is chosen, and what it comes to on the test sets."""

from statistics import mean
from typing import Any, Literal

from experiments.common.estimate import estimate

When = Literal["end", "stopped"]
NOISY = "noisy"  # plain training, to which seconds are compared
BOTH = "both"  # plain training with the same examples, to which accuracies are compared
ORACLE = "oracle"


def summarise(content: dict) -> dict[str, dict[str, dict]]:
    """By problem and method. Everything is chosen by mean accuracy over the seeds' validation sets."""
    config = content["config"]
    return {
        f"{name}-{kind}": _problem(content, f"{name}-{kind}") for name in config["datasets"] for kind in config["kinds"]
    }


def _problem(content: dict, problem: str) -> dict[str, dict]:
    config = content["config"]
    trials = {
        method: [content["results"][f"{problem}-{method}-seed{seed}"]["trials"] for seed in config["seeds"]]
        for method in config["methods"]
    }
    rows = {method: _row(own) for method, own in trials.items()}
    for row in rows.values():
        if NOISY in rows and rows[NOISY]["seconds"]:
            row["cost"] = row["seconds"] / rows[NOISY]["seconds"]
        if BOTH in rows:
            for when in ("end", "stopped"):
                pairs = zip(row[when]["tests"], rows[BOTH][when]["tests"], strict=True)
                row[when]["minus_both"] = estimate([own - both for own, both in pairs])
    return rows


def _row(own: list[list[dict]]) -> dict[str, Any]:
    """Of one method: `own` has the trials, in one order, for each seed."""
    row: dict[str, Any] = {
        "seconds": mean(trial["seconds"] for seed in own for trial in seed),
        "tried": len(own[0]),
        "diverged": sum(trial["diverged"] for seed in own for trial in seed),
    }
    for when in ("end", "stopped"):
        scores = [mean(_score(seed[number], when) for seed in own) for number in range(len(own[0]))]
        best = scores.index(max(scores))
        chosen = [seed[best] for seed in own]
        tests = [_test(trial, when) for trial in chosen]
        rates = sorted({trial["lr"] for trial in own[0]})
        row[when] = {
            "choice": best,
            "lr": chosen[0]["lr"],
            "edge": len(rates) > 1 and chosen[0]["lr"] in (rates[0], rates[-1]),
            "number": chosen[0]["number"],
            "tests": tests,
            "test": estimate(tests),
            "steps": [trial["steps"][look] if (look := _look(trial, when)) is not None else 0 for trial in chosen],
        }
    return row


def _score(trial: dict, when: When) -> float:
    """Validation accuracy; one that diverged is worth nothing at its end."""
    look = _look(trial, when)
    return 0.0 if look is None else trial["validation"][look]


def _test(trial: dict, when: When) -> float:
    look = _look(trial, when)
    return 0.0 if look is None else trial["test"][look]


def _look(trial: dict, when: When) -> int | None:
    """Where the network is taken from: the last look, or the first of those that are best on validation."""
    if not trial["steps"] or (when == "end" and trial["diverged"]):
        return None
    values = trial["validation"]
    return len(values) - 1 if when == "end" else values.index(max(values))


def chosen(content: dict, problem: str, method: str) -> list[dict]:
    """The trials, one for each seed, with what is chosen for the end."""
    number = content["summary"][problem][method]["end"]["choice"]
    return [
        content["results"][f"{problem}-{method}-seed{seed}"]["trials"][number] for seed in content["config"]["seeds"]
    ]


def problem_title(content: dict, problem: str) -> str:
    """Without the kind of wrong labels where there is one alone."""
    name, kind = problem.split("-")
    return name if len(content["config"]["kinds"]) == 1 else f"{name}, {kind}"
