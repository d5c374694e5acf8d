"""What a run says at its end: how alike the derivatives are, what they cost, and which network is better."""

from collections.abc import Sequence
from statistics import fmean

from experiments.common.estimate import Estimate, estimate, interval
from experiments.common.figures import Curve, curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.common.score_figures import trade_off
from experiments.hypergradients.config import RADIUS_LR, TASKS, WAYS

EQUAL_TIME = "in FTP's time"
FORMS = {"paper": "FTP, paper", "exact": "FTP, exact"}


def named(task: str, seed: int, what: str, budget: str = "") -> str:
    """A piece."""
    return f"{task}, split {seed}, {what}" + (f", {budget}" if budget else "")


def stages_of(content: dict, task: str, stage: int | None = None) -> list[dict]:
    """What was found there: by outer loss and kind."""
    config = content["config"]
    return [
        content["results"][named(task, seed, f"stage {at}")]
        for seed in config["seeds"][: config["compared_seeds"]]
        for at in config["stages"]
        if stage in (None, at)
    ]


def agreement_table(content: dict) -> Table:
    """A row for each derivative: means over tasks, splits and stages; seconds and memory are of the worst task."""
    config = content["config"]
    deepest, each = config["depths"][-1], [stages_of(content, task) for task in config["tasks"]]
    rows = []
    for outer in ("training", "validation"):
        for kind in each[0][0][outer]:
            found = [point[outer][kind] for points in each for point in points]
            cosine, signs, ratio = (fmean(one[outer][k] for one in found) for k in range(3))
            row = [f"{FORMS.get(kind, 'full, ' + kind)}, {outer}", f"{cosine:.2f}", f"{100 * signs:.0f} %"]
            other = fmean(one["validation"][0] for one in found)
            seconds = [fmean(point[outer][kind]["seconds"] for point in points) for points in each]
            mib = [fmean(point[outer][kind]["mib"] for point in points) for points in each]
            rows.append([*row, f"{ratio:.2f}", f"{other:.2f}", f"{max(seconds):.2f}", f"{max(mib):.0f}"])
    reference = f"K = {deepest}"
    return [
        "derivative in the radii, of a loss", f"cosine with {reference}", "signs alike", "norm ratio",
        f"cosine with {reference}, validation", "seconds", "MiB",
    ], rows  # fmt: skip


def stage_table(content: dict) -> Table:
    """Cosines by task and stage."""
    config, rows = content["config"], []
    deepest = f"K={config['depths'][-1]}"
    picks = [(outer, kind, outer) for outer in ("training", "validation") for kind in FORMS]
    for task in config["tasks"]:
        for stage in config["stages"]:
            found = stages_of(content, task, stage)
            columns = (estimate([point[outer][kind][with_][0] for point in found])
                       for outer, kind, with_ in (*picks, ("training", deepest, "validation")))  # fmt: skip
            rows.append([f"{task}, step {stage}", *(fixed(column, 2) for column in columns)])
    header = [f"{FORMS[kind]}, {outer}" for outer, kind, _ in picks]
    return ["with the deepest: cosine of", *header, "the deepest: training with validation"], rows


def of_splits(content: dict, way: str, column: str, budget: str = "", tasks: Sequence[str] = ()) -> list[float] | None:
    """A value for each split, the mean over the tasks; None where some task has none. `time` is in FTP's."""
    results, seeds = content["results"], content["config"]["seeds"]
    names = [[named(task, seed, way, budget) for task in tasks or content["config"]["tasks"]] for seed in seeds]
    if any(name not in results for own in names for name in own):
        return None

    def value(name: str) -> float:
        if column != "time":
            return results[name][column]
        task = name.partition(",")[0]
        return results[name]["seconds"] / fmean(results[named(task, seed, "paper")]["seconds"] for seed in seeds)

    return [fmean(map(value, own)) for own in names]


def beyond(content: dict, way: str, other: str, column: str = "ood", budget: str = "", tasks: Sequence[str] = ()
           ) -> Estimate | None:  # fmt: skip
    """The difference of two ways, split by split, and half of its 95 % interval."""
    own = of_splits(content, way, column, budget, tasks)
    base = of_splits(content, other, column, "", tasks)
    return own and base and interval([a - b for a, b in zip(own, base, strict=True)])


def same_labels(way: str) -> str:
    return "paper_all" if WAYS[way].all_labels else "paper"


def ways_table(content: dict) -> Table:
    """A row for each way of fine-tuning and budget."""
    config, rows = content["config"], []
    for budget in ("", EQUAL_TIME):
        for way in config["ways"]:
            if (ood := of_splits(content, way, "ood", budget)) is None:
                continue
            steps, time, mib, own = (of_splits(content, way, name, budget) for name in ("steps", "time", "mib", "id"))
            assert steps and time
            assert mib and own
            row = [WAYS[way].title + (f", {budget}" if budget else ""), f"{fmean(steps):.0f}", f"{fmean(time):.1f}"]
            row += [f"{fmean(mib):.0f}", fixed(estimate(own)), fixed(estimate(ood))]
            row += [_signed(beyond(content, way, same_labels(way), column, budget)) for column in ("id", "ood")]
            row += [_signed(beyond(content, way, "paper_all", "ood", budget))]
            row += [_signed(beyond(content, way, same_labels(way), "ood", budget, [task])) for task in config["tasks"]]
            rows.append(row)
    return [
        "radii by", "steps", "time", "MiB", "ID", "OOD", "ID - FTP's", "OOD - FTP's", "OOD - FTP's on all labels",
        *(f"{task}: OOD - FTP's" for task in config["tasks"]),
    ], rows  # fmt: skip


def _signed(value: Estimate | None) -> str:
    return "" if value is None else fixed(value, signed=True)


def verdict(content: dict) -> str:
    """Whether radii by a validation gradient win, in the mean over the tasks."""
    lines = []
    for way in (way for way in content["config"]["ways"] if WAYS[way].validates):
        found = [beyond(content, way, other) for other in ("paper", "paper_all")]
        if any(value is None or value[1] is None for value in found):
            continue
        wins = all(value and value[0] > (value[1] or 0.0) for value in found)
        same, every = map(_signed, found)
        lines.append(f"{WAYS[way].title}: {same} on the same labels, {every} for FTP on all: "
                     f"{'better' if wins else 'no gain that is certain on both'}")  # fmt: skip
    return bullets(lines)


def write_report(record: RunRecord) -> None:
    """report.md and its figures."""
    content, folder = record.content, record.folder
    config, depths = content["config"], content["config"]["depths"]
    tasks, deepest = config["tasks"], depths[-1]

    def curve(task: str, outer: str, with_: str, kinds: Sequence[str]) -> Curve:
        return mean_curve(depths, [[point[outer][kind][with_][0] for kind in kinds] for point in
                                   stages_of(content, task)])  # fmt: skip

    full = [f"K={depth}" for depth in depths]
    panels = {
        f"{text} with that of {with_} through {deepest}": {
            task: curve(task, outer, with_, full) for task in tasks
        }
        for text, outer, with_ in (
            ("Training loss,", "training", "training"), ("Validation loss,", "validation", "validation"),
            ("Training loss,", "training", "validation"),
        )
    }  # fmt: skip
    curves(folder / "agreement.png", panels, "training steps that are differentiated through (1: FTP, exact)",
           "cosine of the radii's derivatives", log_x=True, ticks=depths, from_zero=True)  # fmt: skip
    points = {}
    for way in config["ways"]:
        time, gain = of_splits(content, way, "time"), beyond(content, way, "paper")
        if time and gain:
            points[WAYS[way].title] = (fmean(time), None), gain
    trade_off(folder / "gain.png", points, ("seconds of training, in those of FTP",
              "score out of distribution minus FTP's, points"))  # fmt: skip
    sizes = {task: about["examples"] for task, about in content["data"].items() if task in tasks}
    about = bullets(f"{task}: {TASKS[task]}; {count['train']} examples to train on, {count['validation']} held out"
                    for task, count in sizes.items())  # fmt: skip
    content["summary"] = {
        way: {name: beyond(content, way, name) for name in ("paper", "paper_all")} for way in config["ways"]
    }
    write(
        record,
        "One-step and full hypergradients of the radii",
        f"{config['steps']} steps of {config['batch_size']} examples with AdamW at {config['lr']:g}, projected into "
        f"balls around the anchor; no weight decay, no dropout, a cosine. Splits {', '.join(map(str, config['seeds']))}"
        f" of one pool.\n\n{about}",
        "## How alike",
        f"At steps {', '.join(map(str, config['stages']))} of a fine-tuning with FTP, on {config['compared_seeds']} "
        f"splits; before each the radii are held for {deepest} steps. `full, K` goes through the last K steps, second "
        "derivatives included; FTP's forms are of the last one: `exact` of the rows that are clipped, `paper` of all. "
        "Exact equals K = 1 to 1e-5 everywhere, and to 1e-12 in float64. Seconds of the processor and MiB above "
        "what was held are those of the dearest task.",
        agreement_table(content),
        stage_table(content),
        "![Cosine of derivatives against the number of steps; in the third panel training losses are compared with "
        "validation losses](agreement.png)",
        "## Which network is better",
        "Mean ± standard error over the splits, each the mean over the tasks; differences to FTP (paper) on the same "
        "labels, split by split, with half of their 95 % intervals by Student's t. Time is in FTP's. A full "
        f"derivative moves the radii once in K steps, and a validation gradient once in so many; in between they are "
        f"held, and `radius_lr` is {RADIUS_LR:g} times that number. Ways with validation train on fewer labels than "
        "`all labels`, which has the held-out ones, too. In FTP's time: fewer steps, the schedule shortened.",
        ways_table(content),
        verdict(content),
        "![Robustness against cost: up is better, left is cheaper; FTP is at (1, 0). Bars are 95 % intervals over the "
        "splits](gain.png)",
    )  # fmt: skip
