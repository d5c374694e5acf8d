"""What the study says at its end: the table, who is best where, and two figures."""

from experiments.common import checkpoint
from experiments.common.estimate import Estimate
from experiments.common.figures import Curve, curves
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.tuning.search.contenders import CONTENDERS, LEFT_OUT, PROBLEMS, SEARCHES
from experiments.tuning.search.descents import ONLINE_RATE, PATIENCE, RATES, SEARCHED
from experiments.tuning.search.plots import gain_by_size
from experiments.tuning.search.results import by_size, over_time, results_of, summarise


def table(content: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each problem: the default, and the best of each kind by mean test loss."""
    kinds = {
        "search": {*SEARCHES, "random-all"} - {"default"},
        "hypergradients": CONTENDERS.keys() - {*SEARCHES, "random-all"},
    }
    rows = []
    for problem, found in content["summary"]["problems"].items():
        finite = {name: row for name, row in found["rows"].items() if row}
        row = [f"{PROBLEMS[problem].title} ({found['numbers']:,})", shown(finite["default"]["loss"], 3)]
        for kind in kinds.values():
            own = [name for name in finite if name in kind]
            name = min(own, key=lambda name: finite[name]["loss"][0], default=None)
            row += ["", ""] if name is None else [CONTENDERS[name].title, shown(finite[name]["loss"], 3)]
        rows.append(row)
    return ["problem", "default", "best search", "test loss", "best by hypergradients", "test loss"], rows


def all_of(content: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each problem and contender."""
    header = ["problem", "contender", "test loss", "accuracy (%)", "validation loss", "gain (%)", "trainings"]
    rows = []
    for problem, found in content["summary"]["problems"].items():
        for name, row in found["rows"].items():
            start = [f"{PROBLEMS[problem].title} ({found['numbers']:,})", CONTENDERS[name].title]
            if row is None:
                rows.append([*start, "diverged", "", "", "", ""])
                continue
            accuracy, validation = shown(row["accuracy"], 1), shown(row["validation"], 3)
            gain = "" if name == "default" else shown(row["gain"], 1)
            rows.append([*start, shown(row["loss"], 3), accuracy, validation, gain, f"{row['trials'][0]:.0f}"])
    return header, rows


def shown(value: Estimate, digits: int) -> str:
    mean, error = value
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def verdicts(content: dict) -> list[str]:
    """For each problem the best contender, and those that the seeds do not tell from it."""
    lines = []
    for problem, found in content["summary"]["problems"].items():
        numbers = "1 hyperparameter" if found["numbers"] == 1 else f"{found['numbers']:,} hyperparameters"
        best, level = found["best"], found["level"]
        of = ", ".join(CONTENDERS[name].title for name in level)
        single = len(content["config"]["seeds"]) == 1
        apart = "one seed, so no standard error" if single else f"within one standard error: {of or 'none'}"
        lines.append(f"{PROBLEMS[problem].title} ({numbers}): {CONTENDERS[best].title}; {apart}.")
    return lines


def tally(content: dict) -> str:
    """How often a method without derivatives is best, or level with the best."""
    problems = content["summary"]["problems"]
    searches = {*SEARCHES, "random-all"}
    best = sum(found["best"] in searches for found in problems.values())
    level = sum(bool(searches & {found["best"], *found["level"]}) for found in problems.values())
    return (
        f"A method without derivatives has the lowest mean test loss on {best} of {len(problems)} problems, and is "
        f"the best or within one standard error of it on {level}."
    )


def setting(content: dict) -> str:
    config = content["config"]
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return (
        f"Each contender has {config['seconds']:g} s of wall time on one thread ({config['emoji_seconds']:g} s on "
        f"emoji, {config['network_seconds']:g} s where all of that network is trained) to find "
        "hyperparameters by the validation loss after a whole training; what it has found so far is tested while its "
        "clock stands still. All but the online ones tune the very run that is tested: initial "
        "weights and order of batches are fixed by the seed. All begin with the same default, and draw from the same "
        "ranges. Bilevel methods move the logarithm (the logit of what lies in (0, 1)) by Adam with the rates "
        f"{rates}: the next one, from the best so far, after {PATIENCE} outer steps without a better one, and after "
        "the last from a random place. `search, then Unroll` is a random search over the few numbers for "
        f"{100 * SEARCHED:.0f} % of the time, then bilevel from the best. The online ones move hyperparameters at "
        f"every step of a single training along the one-step hypergradient, by Adam with the rate {ONLINE_RATE:g}, "
        "and repeat it from random first values; what counts is the trained network."
    )


def write_report(record: RunRecord) -> None:
    content, folder = record.content, record.folder
    content["summary"] = summarise(content)
    problems = content["config"]["problems"]
    names = {name: CONTENDERS[name].title for name in content["config"]["contenders"]}
    panels = {}
    for problem in problems:
        numbers = content["summary"]["problems"][problem]["numbers"]
        drawn = {}
        for name, title in names.items():
            points = over_time(content, problem, name) if name in PROBLEMS[problem].contenders else []
            if points:
                errors = None if points[0][1][1] is None else [error or 0.0 for _, (_, error) in points]
                drawn[title] = Curve([seconds for seconds, _ in points], [mean for _, (mean, _) in points], errors)
        panels[f"{PROBLEMS[problem].title} ({numbers:,})"] = drawn
    label = "test loss of the best so far by validation"
    curves(folder / "time.png", panels, "seconds", label, log_x=True)
    order = list(dict.fromkeys(title for drawn in panels.values() for title in drawn))
    gain_by_size(folder / "gain.png", by_size(content), order)
    few = {
        PROBLEMS[problem].title: found["few"]
        for problem in problems
        if (found := results_of(content, problem, "default")[0])["numbers"] > 5
    }
    about = [
        f"- {PROBLEMS[problem].title}: {PROBLEMS[problem].about}; "
        f"{results_of(content, problem, 'default')[0]['steps']} steps"
        for problem in problems
    ]
    lines = [
        "# Hypergradients and searches at equal time",
        "",
        setting(content),
        "",
        *about,
        "",
        "![Gain over the default by the number of hyperparameters](gain.png)",
        "",
        "Where several problems have the same number of hyperparameters, the gain is the mean over them, of contenders "
        "that take part in all.",
        "",
        tally(content),
        "",
        *(f"- {line}" for line in verdicts(content)),
        "",
        *markdown(*table(content)),
        "",
        "The best search and the best method by hypergradients are those of the lowest mean test loss. All of them:",
        "",
        "![Test loss over seconds](time.png)",
        "",
        f"Mean ± standard error over seeds {', '.join(map(str, content['config']['seeds']))}. Gain: by how much the "
        "test loss is below that of the default, seed by seed. Trainings: those that came to their end in the time.",
        "",
        *markdown(*all_of(content)),
        "",
        *([f"Searches over a few numbers in place of many: {_listed(few)}.", ""] if few else []),
        LEFT_OUT,
        "",
        *provenance(content),
    ]
    checkpoint.write_text(folder / "report.md", "\n".join(lines) + "\n")


def _listed(few: dict[str, str]) -> str:
    return "; ".join(f"{title}: {about}" for title, about in few.items())
