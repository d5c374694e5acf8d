"""What the study says: tables, figures, and what it was made with."""

from collections.abc import Iterator, Sequence
from statistics import mean, median

from experiments.common.estimate import Estimate, estimate, interval
from experiments.common.figures import Curve, curves, dots, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.meta.few_labels.config import ABOUT, BATCH, HELD_OUT, LR, WRONG
from experiments.meta.few_labels.methods import METHODS
from experiments.meta.few_labels.weights import QUANTILES

PLAIN, OURS = "add", "learned"
OVER_TASKS = (
    "For those who take one way for all tasks, the mean over the tasks, split by split, from {labels} labels. "
    "At worst: on the task where the method is furthest behind."
)
NOT_SIMPLE = (OURS, "learned_then", "learned_then_ftp", "then_learned_wise", "told")


def piece(name: str, seed: int, labels: int, method: str) -> str:
    return f"{name}, split {seed}, {labels} labels, {method}"


def methods_of(methods: tuple[str, ...] | list[str], name: str) -> list[str]:
    return [method for method in methods if METHODS[method].wrong in (None, name in WRONG)]


def results_of(content: dict, name: str, method: str, labels: int | None = None) -> list[dict]:
    """By split; from so many labels, or as many as all tasks have."""
    config = content["config"]
    return [content["results"][piece(name, seed, labels or config["labels"], method)] for seed in config["seeds"]]


def summarise(content: dict) -> dict[str, dict[str, dict[str, dict]]]:
    """By task, number of labels and method: scores by split, and the seconds and memory of a training."""
    config, found = content["config"], {}
    for name in config["tasks"]:
        for count in sorted((config["labels"], *config["counts"])):
            rows = found.setdefault(name, {})[str(count)] = {}
            for method in methods_of(config["methods"], name):
                own = results_of(content, name, method, count)
                cost = {what: median(result[what] for result in own) for what in ("seconds", "memory")}
                rows[method] = {"scores": [result["score"] for result in own], **cost}
    return found


def best_simple(rows: dict[str, dict]) -> str:
    """That with the highest mean on the tests: chosen after the fact, in its favour."""
    return max((method for method in rows if method not in NOT_SIMPLE), key=lambda method: mean(rows[method]["scores"]))


def gain(rows: dict[str, dict], method: str, other: str) -> Estimate:
    """Split by split."""
    pairs = zip(rows[method]["scores"], rows[other]["scores"], strict=True)
    return interval([own - its for own, its in pairs])


def table(content: dict) -> Table:
    rows = []
    for name, count, by_method in problems_of(content["summary"]):
        simple = best_simple(by_method)
        for method, own in by_method.items():
            best = " (best simple)" if method == simple else ""
            gains = (fixed(gain(by_method, method, other), signed=True) for other in (PLAIN, simple))
            plain = by_method[PLAIN]
            costs = (f"{own[what] / max(plain[what], 0.1):.1f} x" for what in ("seconds", "memory"))
            rows.append([name, count, METHODS[method].title + best, fixed(estimate(own["scores"])), *gains, *costs])
    minus = (f"minus {METHODS[PLAIN].title}", "minus the best simple one")
    return ["task", "labels", "method", "score", *minus, "time", "memory"], rows


def problems_of(summary: dict) -> Iterator[tuple[str, str, dict[str, dict]]]:
    """A task, a number of labels, and what was measured there by method."""
    return ((name, count, rows) for name, by_count in summary.items() for count, rows in by_count.items())


def over_tasks(content: dict) -> Table | None:
    """For those who take one way for all tasks of a kind: the mean over them, split by split, against the highest."""
    config, rows = content["config"], []
    for kind, wrong in (("another domain", False), ("wrong labels", True)):
        tasks = [name for name in config["tasks"] if (name in WRONG) == wrong]
        found = [content["summary"][name][str(config["labels"])] for name in tasks]
        shared = [method for method in METHODS if all(method in by_method for by_method in found)]
        if len(tasks) < 2:
            continue
        means = {method: {"scores": by_split(found, method)} for method in shared}
        highest = max(shared, key=lambda method: (method != "told", mean(means[method]["scores"])))
        for method, own in means.items():
            behind = min(gain(by_method, method, best_simple(by_method))[0] for by_method in found)
            minus = "" if method == highest else fixed(gain(means, highest, method), signed=True)
            rows.append([kind, METHODS[method].title, fixed(estimate(own["scores"])), minus, f"{behind:+.1f}"])
    minus = ("the highest minus it", "at worst minus the best simple one")
    return (["the source has", "method", "mean score", *minus], rows) if rows else None


def by_split(found: Sequence[dict[str, dict]], method: str) -> list[float]:
    """Means over tasks."""
    return [mean(scores) for scores in zip(*(by_method[method]["scores"] for by_method in found), strict=True)]


def learned_table(content: dict) -> Table | None:
    """Mean of what the recipe learned: relative weights of the groups, what a loss of 1 costs, the labels' share."""
    rows = []
    for name in content["config"]["tasks"] if OURS in content["config"]["methods"] else ():
        found = [result["learned"] for result in results_of(content, name, OURS)]
        for number, group in enumerate(content["data"][name]["groups"]):
            rows.append([name, group, fixed(estimate([own["group"][number] for own in found]), 2, signed=True)])
        for what in ("loss", "share"):
            rows.append([name, what, fixed(estimate([own[what][0] for own in found]), 2, signed=True)])
    return (["task", "of", "learned number"], rows) if rows else None


def examples_of(content: dict) -> dict[str, list[dict]]:
    """What the recipe thinks of the examples: by task, of each split."""
    tasks = content["config"]["tasks"] if OURS in content["config"]["methods"] else ()
    return {name: [run["learned"]["examples"] for run in results_of(content, name, OURS)] for name in tasks}


def separated(examples: dict[str, list[dict]]) -> str | None:
    """How often a right label outweighs a wrong one."""
    shares = {name: [100 * own["pairs"] for own in found] for name, found in examples.items() if "pairs" in found[0]}
    each = ", ".join(f"{fixed(estimate(of_splits))} % ({name})" for name, of_splits in shares.items())
    return f"Of a right and a wrong label the right one has the higher weight in {each} of all pairs." if each else None


def extremes(content: dict, examples: dict[str, list[dict]]) -> list[str | Table]:
    """The examples with the lowest and the highest weights in the first split, where they may be shown."""
    found: list[str | Table] = []
    for name, own in examples.items():
        if "ends" in own[0]:
            lowest, highest = own[0]["ends"]
            rows = [list(pair) for pair in zip(lowest, highest, strict=True)]
            found.append(f"The lowest and the highest weights of {name}, split {content['config']['seeds'][0]}:")
            found.append((["lowest", "highest"], rows))
    return found


def setting(content: dict) -> str:
    config, data = content["config"], content["data"]
    tasks = "; ".join(
        f"{name}: {ABOUT[name]}, {data[name]['source']} examples of the source, {data[name]['labels']} labels, "
        f"{data[name]['tests']} tests" for name in config["tasks"]
    )  # fmt: skip
    return (
        f"Tasks: {tasks}. Scores are accuracies in %, means over the classes but for emoji; ± standard error over "
        f"splits {', '.join(map(str, config['seeds']))} of one pool, and differences with 95 % intervals by Student's "
        f"t. Whole networks from their public weights, {config['steps']} steps of {BATCH} examples by AdamW, learning "
        f"rate {LR:g}, rising in a tenth of the steps and falling to 0 as a cosine. Where something is "
        f"chosen by the labels, one in {HELD_OUT} is held out for that; Optuna has {config['trials']} trainings and a "
        "last one with all labels. The best simple way is that with the highest mean on the tests, which favours it. "
        f"Time and memory: seconds of the processor, and the peak above what was held before, over those of "
        f"{METHODS[PLAIN].title!r}; medians."
    )


def _weights(record: RunRecord, examples: dict[str, list[dict]]) -> str | None:
    if not examples:
        return None
    at = [100 * k / (QUANTILES - 1) for k in range(QUANTILES)]
    of_kinds = {
        name: {kind: mean_curve(at, [own["quantiles"][kind] for own in found]) for kind in found[0]["quantiles"]}
        for name, found in examples.items()
    }
    curves(record.folder / "weights.png", of_kinds, "examples with a lower weight (%)", "weight over the mean")
    return "![Learned weights of examples, by kind, mean over splits](weights.png)"


def _counts(record: RunRecord) -> str | None:
    summary, config = record.content["summary"], record.content["config"]
    if not config["counts"]:
        return None
    counts = sorted((config["labels"], *config["counts"]))

    def curve(name: str, method: str) -> Curve:
        by_count = (rows[method]["scores"] for rows in summary[name].values())
        return mean_curve(counts, list(zip(*by_count, strict=True)))

    by_task = {
        name: {METHODS[method].title: curve(name, method) for method in methods_of(config["methods"], name)}
        for name in summary
    }
    curves(record.folder / "counts.png", by_task, "labels", "score (%)", log_x=True, ticks=counts)
    return "![Scores by the number of labels, mean and standard error over splits](counts.png)"


def write_report(record: RunRecord) -> None:
    content = record.content
    summary = content["summary"] = summarise(content)
    gains = {
        f"{name}, {count} labels": {
            METHODS[method].title: gain(rows, method, PLAIN) for method in rows if method != PLAIN
        }
        for name, count, rows in problems_of(summary)
    }
    dots(record.folder / "gain.png", gains, f"points above {METHODS[PLAIN].title!r}")
    examples, shared = examples_of(content), over_tasks(content)
    tried = [name for name in METHODS if any(name in rows for *_, rows in problems_of(summary))]
    write(
        record,
        "A few labels of the domain that counts",
        setting(content),
        bullets(f"{METHODS[name].title}: {METHODS[name].about}." for name in tried),
        table(content),
        shared and OVER_TASKS.format(**content["config"]),
        shared,
        f"![Points above {METHODS[PLAIN].title!r}, with 95 % intervals over splits](gain.png)",
        "What the recipe learned, mean over the splits: of a group the logarithm of its weight, up to a constant; of "
        "the loss how much one nat more takes from that logarithm; of the share of the labels its logit.",
        learned_table(content),
        separated(examples),
        _weights(record, examples),
        _counts(record),
        *extremes(content, examples),
    )
