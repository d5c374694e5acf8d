"""What a run says at its end: how alike the derivatives are, what they cost, and which network is better."""

from collections.abc import Sequence
from statistics import fmean

from experiments.common.estimate import Estimate, estimate, interval
from experiments.common.figures import curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.common.score_figures import trade_off
from experiments.hypergradients.config import RADIUS_LR, TASKS, WAYS

COMPARED = 3  # splits on which derivatives are
EQUAL_TIME = "in FTP's time"
LOSSES = ("training", "validation")


def named(task: str, seed: int, what: str, budget: str = "") -> str:
    """A piece."""
    return f"{task}, split {seed}, {what}" + (budget and f", {budget}")


def found(content: dict, outer: str, kind: str, tasks: Sequence[str], stages: Sequence[int]) -> list[dict]:
    """What is kept of a derivative, split by split."""
    seeds = content["config"]["seeds"][:COMPARED]
    names = [named(task, seed, f"stage {stage}") for task in tasks for stage in stages for seed in seeds]
    return [content["results"][name][outer][kind] for name in names]


def agreement_table(content: dict) -> Table:
    """A row for each derivative: means over tasks, stages and splits; then the paper's form and the deepest derivative
    by task and by stage."""
    (tasks, stages, depths), rows = (content["config"][name] for name in ("tasks", "stages", "depths")), []
    titles = {"paper": "FTP, paper", "exact": "FTP, exact"} | {f"K={k}": f"full, K = {k}" for k in depths}
    scopes = {"": (tasks, stages, [*titles])}
    scopes |= {f"{task}: ": ([task], stages, ["paper", f"K={depths[-1]}"]) for task in tasks}
    scopes |= {f"step {stage}: ": (tasks, [stage], ["paper", f"K={depths[-1]}"]) for stage in stages}
    for scope, (of, at, kinds) in scopes.items():
        for outer, kind in ((outer, kind) for outer in LOSSES for kind in kinds):
            own = found(content, outer, kind, of, at)
            cosine, signs, ratio = map(fmean, zip(*(one[outer] for one in own), strict=True))
            row = [f"{scope}{titles[kind]}, {outer}", f"{cosine:.2f}", f"{100 * signs:.0f} %", f"{ratio:.2f}"]
            row += [f"{fmean(one['validation'][0] for one in own):.2f}"]
            rows.append([*row, *(f"{fmean(one[cost] for one in own):.3g}" for cost in ("seconds", "mib"))])
    with_ = f"cosine with K = {depths[-1]}"
    header = ["derivative, of a loss", with_, "signs alike", "norm ratio", f"{with_}, validation", "seconds", "MiB"]
    return header, rows


def of_splits(content: dict, way: str, column: str, budget: str = "", tasks: Sequence[str] = ()) -> list[float]:
    """A value for each split, the mean over the tasks, `time` in FTP's; none where a task has none."""
    results, seeds, tasks = content["results"], content["config"]["seeds"], tasks or content["config"]["tasks"]
    if any(named(task, seed, way, budget) not in results for task in tasks for seed in seeds):
        return []

    def value(task: str, seed: int) -> float:
        own = results[named(task, seed, way, budget)]
        ftp = fmean(results[named(task, each, "paper")]["seconds"] for each in seeds)
        return own["seconds"] / ftp if column == "time" else own[column]

    return [fmean(value(task, seed) for task in tasks) for seed in seeds]


def beyond(content: dict, way: str, other: str, budget: str = "", tasks: Sequence[str] = ()) -> Estimate | None:
    """How much better out of distribution than another way, split by split, and half of the 95 % interval."""
    own, base = of_splits(content, way, "ood", budget, tasks), of_splits(content, other, "ood", "", tasks)
    return interval([a - b for a, b in zip(own, base, strict=True)]) if own and base else None


def ways_table(content: dict) -> Table:
    """A row for each way of fine-tuning and budget."""
    tasks, rows = content["config"]["tasks"], []
    for budget, way in ((budget, way) for budget in ("", EQUAL_TIME) for way in content["config"]["ways"]):
        if own := of_splits(content, way, "ood", budget):
            steps, time, mib = (fmean(of_splits(content, way, name, budget)) for name in ("steps", "time", "mib"))
            row = [WAYS[way].title + (budget and f", {budget}"), f"{steps:.0f}", f"{time:.2f}", f"{mib:.0f}"]
            row += [fixed(estimate(scores)) for scores in (of_splits(content, way, "id", budget), own)]
            gains = [beyond(content, way, other, budget) for other in ("paper", "paper_all")]
            sure = all(gain and gain[1] and gain[0] > gain[1] for gain in gains)
            gains += [beyond(content, way, "paper", budget, [task]) for task in tasks]
            rows.append([*row, *(fixed(gain, signed=True) if gain else "" for gain in gains), "yes" if sure else "no"])
    header = ["radii by", "steps", "time", "MiB", "ID", "OOD", "OOD - FTP's", "OOD - FTP's on all labels"]
    return [*header, *(f"{task}: OOD - FTP's" for task in tasks), "surely better than both"], rows


def write_report(record: RunRecord) -> None:
    """report.md and its figures."""
    content, config = record.content, record.content["config"]
    (tasks, stages, depths), panels = (config[name] for name in ("tasks", "stages", "depths")), {}
    for outer, with_ in (("training", "training"), ("validation", "validation"), ("training", "validation")):
        each = {task: [found(content, outer, f"K={k}", [task], stages) for k in depths] for task in tasks}
        panels[f"{outer.capitalize()} loss, with a {with_} loss through {depths[-1]} steps"] = {
            task: mean_curve(depths, [[one[with_][0] for one in point] for point in zip(*by_depth, strict=True)])
            for task, by_depth in each.items()
        }
    axes = "training steps differentiated through (1: FTP, exact)", "cosine of derivatives in the radii"
    curves(record.folder / "agreement.png", panels, *axes, log_x=True, ticks=depths, from_zero=True)
    points = {
        WAYS[way].title: ((fmean(of_splits(content, way, "time")), None), gain)
        for way in config["ways"]
        if (gain := beyond(content, way, "paper"))
    }
    axes = "seconds of training, in those of FTP", "score out of distribution minus FTP's, points"
    trade_off(record.folder / "gain.png", points, axes)
    sizes = {
        task: "{train} examples to train on, {validation} held out".format(**content["data"][task]) for task in tasks
    }
    write(
        record, "One-step and full hypergradients of the radii",
        f"{config['steps']} steps of {config['batch_size']} examples with AdamW at {config['lr']:g} (a cosine), "
        "projected into balls around the anchor, without weight decay and dropout. Splits "
        f"{', '.join(map(str, config['seeds']))} of one pool, each with its own anchor where one is trained.",
        bullets(f"{task}: {TASKS[task]}; {size}" for task, size in sizes.items()),
        f"## How alike\n\nAt steps {', '.join(map(str, stages))} of fine-tunings with FTP, on the first {COMPARED} "
        f"splits, with the radii held for the last {depths[-1]} steps. `full` goes through the last K of them, second "
        "derivatives included; FTP's forms are of the last one: `exact` of the rows that are clipped, `paper` of all. "
        "Exact equals K = 1 to 1e-5 everywhere, and to 1e-12 in float64. Seconds of the processor, and MiB above what "
        "was held.",
        agreement_table(content),
        "![Cosine of derivatives against the number of steps](agreement.png)",
        "## Which network is better\n\nMean ± standard error over the splits, each the mean over the tasks; "
        "differences to FTP (paper) that never sees the held-out examples, and to FTP trained on all, split by split, "
        "with half of their 95 % intervals by Student's t; surely better if both are above 0. Time is in FTP's. A full "
        "derivative moves the radii once in K steps, a validation gradient once in so many; in between they are held, "
        f"and `radius_lr` is that number times {RADIUS_LR:g}. Ways with validation never train on the held-out "
        "examples, `all labels` does. In FTP's time: fewer steps, the schedule shortened.",
        ways_table(content),
        "![Robustness against cost: up is better, left is cheaper; FTP is at (1, 0); bars are 95 % intervals over "
        "splits](gain.png)",
    )  # fmt: skip
