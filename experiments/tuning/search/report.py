"""What the study says at its end: the table, who is best where, and two figures."""

from experiments.common import checkpoint
from experiments.common.estimate import Estimate
from experiments.common.figures import Curve, curves
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.tuning.search.contenders import CONTENDERS, LEFT_OUT, PROBLEMS
from experiments.tuning.search.descents import ONLINE_RATE, PATIENCE, RATES, SEARCHED, TOP_RATE
from experiments.tuning.search.plots import gain_by_size
from experiments.tuning.search.results import by_size, chosen_by_size, over_time, results_of, summarise


def table(content: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each problem: the default, and the one chosen of each group."""
    rows = []
    for problem, found in content["summary"]["problems"].items():
        default = found["rows"]["default"]
        row = [
            f"{PROBLEMS[problem].title} ({found['numbers']:,})",
            shown(default["loss"], 3) if default else "diverged",
        ]
        for name in found["chosen"].values():
            row += ["", ""] if name is None else [CONTENDERS[name].title, shown(found["rows"][name]["loss"], 3)]
        rows.append([*row, "" if found["apart"] is None else shown(found["apart"], 3)])
    return ["problem", "default", "search", "test loss", "hypergradients", "test loss", "difference"], rows


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
    config = content["config"]
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return (
        f"Each contender has {config['seconds']:g} s of wall time on {_threads(content)} ({config['emoji_seconds']:g} "
        "s on "
        f"emoji, {config['network_seconds']:g} s where all of that network is trained) to find "
        "hyperparameters by the validation loss after a whole training; what it has found so far is tested while its "
        "clock stands still. All but the online ones tune the very run that is tested: initial "
        "weights and order of batches are fixed by the seed. All begin with the same default, and draw from the same "
        "ranges. Bilevel methods move the logarithm (the logit of what lies in (0, 1)) by Adam with the rates "
        f"{rates}: the next one, from the best so far, after {PATIENCE} outer steps without a better one, and after "
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


def _threads(content: dict) -> str:
    count = content["environment"]["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def _least_share(content: dict) -> float:
    return min(result["share_of_processor"] for result in content["results"].values())


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
    gain_by_size(folder / "gain.png", by_size(content), chosen_by_size(content))
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
        "![Gain over the default by the number of hyperparameters: above 0 a contender is better than the default]"
        "(gain.png)",
        "",
        "Wide lines: the contender of each group that is chosen, problem by problem, by its mean validation loss. "
        "Where several problems have the same number of hyperparameters, the gain is the mean over them, of contenders "
        "that take part in all. Each number of hyperparameters is another problem with a default of its own: 1,000 are "
        "weights where many labels are wrong. A line is no effect of the number alone.",
        "",
        tally(content) + " The default belongs to neither; the groups differ in size, and so in attempts.",
        "",
        *markdown(*table(content)),
        "",
        "The last column is the test loss of the chosen method by hypergradients minus that of the chosen search, seed "
        "by seed. All contenders:",
        "",
        "![Test loss over seconds: the earlier a line falls and the lower it ends, the better](time.png)",
        "",
        f"Mean ± standard error over seeds {', '.join(map(str, content['config']['seeds']))}. Gain: by how much the "
        "test loss is below that of the default, seed by seed. Trainings: those that came to their end in the time. "
        f"Processor time was at least {100 * _least_share(content):.0f} % of wall time in every race; what is missing "
        "had another program.",
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
