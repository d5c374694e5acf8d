"""What a run says at its end: how alike the gradients are, what they cost, what they bring; tables and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, median

from experiments.common.estimate import estimate
from experiments.common.figures import Curve, curves, mean_curve
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, fixed, write
from experiments.hypergradients.config import RADIUS_LR, WAYS
from experiments.hypergradients.gradients import Agreement, agreement

TITLES = {"paper": "FTP, paper", "exact": "FTP, exact"}
EQUAL_TIME = "in the time of FTP"
REFERENCES = ("training", "validation")

PICKS = {"cosine": attrgetter("cosine"), "share of equal signs": attrgetter("signs")}


@dataclass(frozen=True)
class Subject:
    """How a report names a task's network and examples."""

    network: str
    examples: Callable[[dict], tuple[str, str]]  # of the record's facts: those trained on, and those held out
    anchors: Mapping[str, str]  # by the option


def points_of(content: dict) -> list[dict]:
    return [result for name, result in content["results"].items() if name.startswith("point-")]


def against(point: dict, loss: str, kind: str, reference_loss: str, depth: int) -> Agreement:
    """A gradient with the full one through `depth` steps, at one point."""
    return agreement(point["gradients"][loss][kind], point["gradients"][reference_loss][f"K={depth}"])


def title(loss: str, kind: str) -> str:
    name = TITLES.get(kind, f"full, {kind.replace('=', ' = ')}")
    return f"{name}, {loss}"


def compared(content: dict) -> Table:
    """A row for each gradient: means over the points, medians of what it took."""
    points, deepest = points_of(content), content["config"]["depths"][-1]
    header = ["gradient of the radii, loss"]
    for reference in REFERENCES:
        header += [f"cosine with K = {deepest}, {reference}", "signs alike", "norm ratio"]
    header += ["seconds", "MiB"]
    rows = []
    for loss, kinds in points[0]["gradients"].items():
        for kind in kinds:
            row = [title(loss, kind)]
            for reference in REFERENCES:
                found = [against(point, loss, kind, reference, deepest) for point in points]
                row.append(f"{fmean(a.cosine for a in found):.2f}")
                row.append(f"{100 * fmean(a.signs for a in found):.0f} %")
                row.append(f"{fmean(a.ratio for a in found):.2f}")
            key = f"{loss}, {kind}"
            row.append(f"{median(point['seconds'][key] for point in points):.2f}")
            row.append(f"{median(point['mib'][key] for point in points):.0f}")
            rows.append(row)
    return header, rows


def fine_tuned(content: dict) -> Table:
    """A row for each way of fine-tuning and budget."""
    results, seeds = content["results"], content["config"]["seeds"]
    rows = []
    for budget, ending in (("equal steps", ""), ("equal time", f"-{EQUAL_TIME}")):
        for way in content["config"]["ways"]:
            names = [f"{way}-seed{seed}{ending}" for seed in seeds]
            found = [results[name] for name in names if name in results]
            if len(found) < len(names):
                continue
            diverged = sum(result["diverged"] for result in found)
            title_of = WAYS[way].title + (f" ({diverged} diverged)" if diverged else "")
            steps, seconds = (fmean(result[fact] for result in found) for fact in ("steps", "seconds"))
            columns = (fixed(estimate([result[column] for result in found])) for column in ("id", "ood"))
            rows.append([title_of, budget, f"{steps:.0f}", f"{seconds:.0f}", *columns])
    anchor = content["anchor"]
    if "id" in anchor:
        rows.insert(0, ["anchor, not fine-tuned", "", "0", "0", f"{anchor['id']:.1f}", f"{anchor['ood']:.1f}"])
    return ["radii by", "budget", "steps", "seconds", "ID", "OOD"], rows


def setting(content: dict, subject: Subject) -> str:
    config, (trained_on, held_out) = content["config"], subject.examples(content["data"])
    deepest = config["depths"][-1]
    return (
        f"{subject.network} is fine-tuned with FTPAdamW (paper) on {trained_on}, from "
        f"{subject.anchors[config['anchor']]}. After {', '.join(map(str, config['points']))} steps the run pauses: "
        f"{deepest} training steps are made from there with the radii held, and at their end the derivative of a loss "
        f"in every layer's radius is taken in several ways. The loss is that of the next training batch, or of a batch "
        f"of the {held_out} held out. `full, K` goes back through the last K steps, second derivatives included; FTP's "
        "closed forms are of the last step alone. `paper` lets every row of a layer contribute, `exact` those that are "
        "clipped. Cosine and signs are over the layers, means over the points."
    )


def write_report(record: RunRecord, subject: Subject) -> None:
    """report.md and its figure."""
    content = record.content
    points, depths = points_of(content), content["config"]["depths"]
    deepest = depths[-1]
    losses = list(points[0]["gradients"])

    def curve(loss: str, kinds: Sequence[str], pick: Callable[[Agreement], float]) -> Curve:
        return mean_curve(depths, [[pick(against(p, loss, kind, loss, deepest)) for kind in kinds] for p in points])

    deepest_k = f"K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{deepest}"  # a title is broken into lines
    depth_panels = {
        f"{name} with {deepest_k}": {
            **{f"full, {loss}": curve(loss, [f"K={k}" for k in depths], pick) for loss in losses},
            **{title(loss, "paper"): curve(loss, ["paper"] * len(depths), pick) for loss in losses},
        }
        for name, pick in PICKS.items()
    }
    back = "steps K that are differentiated through"
    curves(record.folder / "agreement-by-depth.png", depth_panels, back, "", log_x=True, ticks=depths, from_zero=True)
    config, layers = content["config"], len(points[0]["layers"])
    about_ways = (
        "## Fine-tuning with each",
        f"Accuracy in %, mean ± standard error over seeds {', '.join(map(str, config['seeds']))}, "
        f"{config['ways_epochs']} epochs. A full hypergradient moves the radii once in K steps, K times as far "
        f"(`radius_lr` = K x {RADIUS_LR:g}). Radii begin at the anchor, where the weights stay "
        "until the first move, for K steps: the deeper, the shorter is what remains. Equal time: as many steps as "
        "fit into FTP's seconds, the schedule shortened with them; none is listed where they would be fewer than "
        "2 K. The ways with validation use labels that FTP never sees.",
        fine_tuned(content),
    )
    write(
        record,
        "One-step and full hypergradients of the radii",
        setting(content, subject),
        compared(content),
        f"Over {len(points)} points and {layers} layers. FTP's seconds are those of the gradient at the "
        "end, which training takes anyway, and of the closed form. MiB are the peak above what the process held.",
        "![Agreement with the deepest gradient against depth: where a line is near 1, so many steps say as much as "
        "all. FTP, paper, is of the last step; FTP, exact, equals K = 1](agreement-by-depth.png)",
        *(about_ways if config["ways"] else ()),
    )
