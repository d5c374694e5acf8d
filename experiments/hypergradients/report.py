"""What a run says at its end: how alike the derivatives are, what they cost, and which network is better."""

from statistics import fmean

import numpy as np

from experiments.common.estimate import Estimate, estimate, interval
from experiments.common.figures import curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.common.score_figures import trade_off
from experiments.hypergradients.config import RADIUS_LR, TASKS, WAYS

COMPARED = 3  # splits on which derivatives are
EQUAL_TIME = "in FTP's time"


def named(task: str, seed: int, what: str) -> str:
    return f"{task}, split {seed}, {what}"


def found(content: dict, outer: str, kind: str, tasks: list[str], stages: list[int]) -> list[dict]:
    """What is kept of a derivative, split by split."""
    seeds = content["config"]["seeds"][:COMPARED]
    names = [named(task, seed, f"stage {stage}") for task in tasks for stage in stages for seed in seeds]
    return [content["results"][name][outer][kind] for name in names]


def agreement_table(content: dict) -> Table:
    """A row for each derivative, means over all; then by task and by stage for the first and the last one."""
    (tasks, stages, depths), rows = (content["config"][name] for name in ("tasks", "stages", "depths")), []
    titles = {"paper": "FTP, paper", "exact": "FTP, exact"} | {f"K={k}": f"full, K = {k}" for k in depths}
    scopes = {"": (tasks, stages), **{f"{task}: ": ([task], stages) for task in tasks}}
    scopes |= {f"step {stage}: ": (tasks, [stage]) for stage in stages}
    kinds = {scope: ["paper", f"K={depths[-1]}"] if scope else titles for scope in scopes}
    for scope, outer, kind in [(of, o, k) for of in scopes for o in ("training", "validation") for k in kinds[of]]:
        own = found(content, outer, kind, *scopes[scope])
        cosine, signs, ratio = map(fmean, zip(*(one[outer] for one in own), strict=True))
        row = [f"{scope}{titles[kind]}, {outer}", f"{cosine:.2f}", f"{100 * signs:.0f} %", f"{ratio:.2f}"]
        row += [f"{fmean(one['validation'][0] for one in own):.2f}"]
        rows.append([*row, *(f"{fmean(one[cost] for one in own):.3g}" for cost in ("seconds", "mib"))])
    with_ = f"cosine with K = {depths[-1]}"
    return ["derivative", with_, "signs alike", "norm ratio", f"{with_}, validation", "seconds", "MiB"], rows


def of_all(content: dict, way: str, column: str) -> np.ndarray:
    """[tasks, splits]; nothing where a task has none. Time is in FTP's."""
    config, results = content["config"], content["results"]
    names = [[named(task, seed, way) for seed in config["seeds"]] for task in config["tasks"]]
    there = all(name in results for own in names for name in own)
    if column == "time" and there:
        return of_all(content, way, "seconds") / of_all(content, "paper", "seconds").mean(1, keepdims=True)
    return np.array([[results[name][column] for name in own] for own in names if there])


def gain(content: dict, way: str, other: str = "paper", task: slice = slice(None)) -> Estimate:
    """Out of distribution, the mean over the tasks, with half of the 95 % interval over the splits."""
    return interval((of_all(content, way, "ood") - of_all(content, other, "ood"))[task].mean(0).tolist())


def ways_table(content: dict) -> Table:
    """A row for each way of fine-tuning and budget."""
    tasks, rows = content["config"]["tasks"], []
    for way, budget in ((way, budget) for budget in ("", f", {EQUAL_TIME}") for way in content["config"]["ways"]):
        if len(of_all(content, name := way + budget, "steps")):
            steps, time, mib = (of_all(content, name, column).mean() for column in ("steps", "time", "mib"))
            row = [WAYS[way].title + budget, f"{steps:.0f}", f"{time:.2f}", f"{mib:.0f}"]
            row += [fixed(estimate(of_all(content, name, column).mean(0).tolist())) for column in ("id", "ood")]
            gains = [gain(content, name), gain(content, name, "paper_all")]
            gains += [gain(content, name, task=slice(k, k + 1)) for k in range(len(tasks))]
            rows.append([*row, *(fixed(one, signed=True) for one in gains)])
    header = ["radii by", "steps", "time", "MiB", "ID", "OOD", "OOD - FTP's", "OOD - FTP's on all labels"]
    return [*header, *(f"{task}: OOD - FTP's" for task in tasks)], rows


def write_report(record: RunRecord) -> None:
    """report.md and its figures."""
    content, config = record.content, record.content["config"]
    (tasks, stages, depths), panels = (config[name] for name in ("tasks", "stages", "depths")), {}
    for outer, with_ in (("training", "training"), ("validation", "validation"), ("training", "validation")):
        values = {task: [[one[with_][0] for one in found(content, outer, f"K={k}", [task], stages)] for k in depths]
                  for task in tasks}  # fmt: skip
        text = f"{outer.capitalize()} loss, with a {with_} loss through {depths[-1]} steps"
        panels[text] = {task: mean_curve(depths, [*zip(*of, strict=True)]) for task, of in values.items()}
    axes = "training steps differentiated through (1: FTP, exact)", "cosine of derivatives in the radii"
    curves(record.folder / "agreement.png", panels, *axes, log_x=True, ticks=depths, from_zero=True)
    times = {way: float(of_all(content, way, "time").mean()) for way in config["ways"]}
    points = {WAYS[way].title: ((time, None), gain(content, way)) for way, time in times.items()}
    trade_off(record.folder / "gain.png", points, ("seconds of training, in FTP's", "score OOD minus FTP's, points"))
    write(
        record, "One-step and full hypergradients of the radii",
        f"{config['steps']} steps of {config['batch_size']} examples with AdamW at {config['lr']:g} (a cosine), within "
        f"radii around the anchor; no weight decay, no dropout; splits {', '.join(map(str, config['seeds']))}. A fifth "
        "of the labels is held out, for validation.", bullets(f"{task}: {TASKS[task][0]}" for task in tasks),
        f"## How alike\n\nOn the first {COMPARED} splits, at some steps of fine-tunings with FTP, of which the last "
        f"{depths[-1]} have the radii held. `full` goes through the last K; FTP's forms are of the last one, `exact` "
        "of clipped rows, `paper` of all. Exact equals K = 1 to 1e-5, and to 1e-12 in float64.",
        agreement_table(content), "![Cosine of derivatives against the number of steps](agreement.png)",
        "## Which network is better\n\nMean ± standard error over the splits; differences to FTP (paper) that never "
        "sees the held-out examples, or is trained on them too, with half of their 95 % intervals by Student's t. Time "
        "is the processor's, in FTP's. A full derivative moves the radii once in K steps, a validation gradient once "
        f"in so many; in between they are held, and `radius_lr` is that number times {RADIUS_LR:g}.",
        ways_table(content), "![Up is better, left is cheaper; FTP is at (1, 0); bars are 95 % intervals](gain.png)",
    )  # fmt: skip
