"""report.md and its figures, from the record alone."""

from experiments.common import checkpoint
from experiments.common.estimate import Estimate
from experiments.common.record import RunRecord
from experiments.common.tables import markdown, provenance
from experiments.tuning.towers.plots import sensitivity
from experiments.tuning.towers.summary import summarise

FIGURES = {
    "train": ("training-loss.png", "training loss at the end"),
    "held_out": ("held-out-loss.png", "held-out loss at the end"),
    "lr": ("learning-rate.png", "learning rate of the base at the end"),
}
SEE = "the flatter a line, the less the first learning rate matters"


def table(content: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each base alone and for each tower above it."""
    config = content["config"]
    of = config["highest"] - config["lowest"]
    good = [f"decades of {of} within {100 * share:g} %" for share in config["within"]]
    header = ["task, base", "way", "height", *good, "training loss", "held-out loss", "ms a step, times the base"]
    rows = []
    for name, found in content["summary"].items():
        for way, towers in found["ways"].items():
            for height, one in towers.items():
                if height != "0" or way == config["ways"][0]:
                    cells = [shown(value) for value in (*one["decades"], one["train"], one["held_out"])]
                    above = [way, height] if height != "0" else ["", "0"]
                    rows.append([name, *above, *cells, cost(found["seconds"], way, height)])
    return header, rows


def shown(value: Estimate) -> str:
    """Three digits, whatever the size."""
    return f"{value[0]:.3g}" if value[1] is None else f"{value[0]:.3g} ± {value[1]:.1g}"


def cost(seconds: dict[str, float] | None, way: str, height: str) -> str:
    """And as a multiple of that of the base alone."""
    if seconds is None:
        return ""
    own, alone = seconds[height if height == "0" else f"{way}-{height}"], seconds["0"]
    return f"{1000 * own:.2f}, {own / alone:.1f}x"


def write_report(record: RunRecord) -> None:
    content = record.content
    summary = content["summary"] = summarise(content)
    for quantity, (file, label) in FIGURES.items():
        sensitivity(record.folder / file, summary, content["data"]["lrs"], quantity, label)
    lines = [
        "# Towers of optimizers over the first learning rate",
        "",
        *setting(content),
        "",
        *markdown(*table(content)),
        "",
        *explained(content),
        "",
        "The base alone, from which the shares are taken:",
        "",
        *markdown(*alone(summary, content["config"]["within"])),
    ]
    for file, label in FIGURES.values():
        lines += ["", f"![{label[0].upper()}{label[1:]}, over the first learning rate: {SEE}]({file})"]
    checkpoint.write_text(record.folder / "report.md", "\n".join([*lines, "", *provenance(content)]) + "\n")


def setting(content: dict) -> list[str]:
    config = content["config"]
    ways = {
        "log": "Way log: every level above is Adam and moves the logarithm; the one above the base has learning rate "
        f"{config['hyper_lr']:g}, each further one {config['hyper_ratio']:g} times that of the one below it, in all "
        "tasks and from everywhere.",
        "raw": "Way raw (arXiv 1909.13371, here of the learning rate alone, which is held at 0 or above): every level "
        "is of the base's kind, moves the learning rate itself, and begins with the first learning rate of the base.",
    }
    return [
        f"A base trains for {config['steps']} steps from each of {len(content['data']['lrs'])} first learning rates, "
        f"10^{config['lowest']} to 10^{config['highest']}. A tower of height n has n optimizers above the base; each "
        "tunes the learning rate of the one below it while training, by one-step hypergradients.",
        "",
        *(f"- {ways[way]}" for way in config["ways"]),
        *(f"- Task {name}: {about}." for name, about in content["data"]["tasks"].items()),
    ]


def explained(content: dict) -> list[str]:
    config = content["config"]
    several = len(config["seeds"]) > 1
    lines = [
        "Decades within a share: those between neighbouring first learning rates which both end with a training loss "
        "of which at most this share is missing of the fall that the base alone reaches from its best one.",
        "The losses of a row are those from its own best first learning rate, by training loss; held-out examples "
        "choose nothing.",
    ]
    if several:
        lines.append(f"Mean ± standard error over {len(config['seeds'])} seeds (split, first weights, order).")
    if config["timed_steps"]:
        lines.append(
            "Milliseconds (and how many times those of the base alone) are of one training by itself: medians of "
            f"{config['rounds']} timings of "
            f"{config['timed_steps']} steps, all towers in turns."
        )
    if several:
        lines.append("In the figures lines are medians over the seeds, and bands go from the lowest to the highest.")
    lines.append(
        "A cross at the upper end of a figure stands for what is not finite or beyond the axis: in figures of losses a "
        "training that diverged or ended above the loss before it, in that of learning rates one above 100."
    )
    return [" ".join(lines)]


def alone(summary: dict, within: list[float]) -> tuple[list[str], list[list[str]]]:
    header = ["task, base", "loss before training", "best first learning rate", "training loss from it"]
    header += [f"{100 * share:g} % missing" for share in within]
    rows = []
    for name, found in summary.items():
        reached = next(iter(found["ways"].values()))["0"]
        good = [f"{value:.3g}" for value in found["good"]]
        edge = " (edge)" if found["at_edge"] else ""
        rows.append([name, f"{found['start']:.3g}", f"{found['lr']:.2g}{edge}", shown(reached["train"]), *good])
    return header, rows
