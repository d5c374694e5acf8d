"""report.md and its figures, from the record alone: means over the seeds, differences to the other pictures, sheets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.estimate import Estimate, estimate
from experiments.common.figures import SMALL, WIDTH, Curve, curves, mean_curve, save
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, curve, fixed, paired, unpacked, write
from experiments.meta.distillation.config import INITS, OTHER, OUTER_BATCH, OWN, TEST_INITS, TRACK, WHOLE_BATCH

BASELINES = ("random", "nearest", "centroid")
KINDS = (*BASELINES, "distilled")
TITLES = {"random": "random", "nearest": "nearest", "centroid": "k-means", "distilled": "distilled"}
LONGER = 3  # times as many steps as were differentiated through


def whole_name(data: str, seed: int) -> str:
    return f"{data}-all-seed{seed}"


def few_name(data: str, per_class: int, kind: str, seed: int) -> str:
    return f"{data}-{per_class}-{kind}-seed{seed}"


def cases(config: Mapping) -> list[tuple[str, int]]:
    return [(data, count) for data in config["data"] for count in config["per_class"]]


def of_seeds(content: dict, data: str, count: int, kind: str) -> list[dict]:
    results = content["results"]
    return [results[few_name(data, count, kind, seed)] for seed in content["config"]["seeds"]]


def whole_of(content: dict, data: str) -> list[dict]:
    return [content["results"][whole_name(data, seed)] for seed in content["config"]["seeds"]]


def scores(found: list[dict], network: str) -> list[float]:
    return [result["scores"][network]["test"] for result in found]


def summarise(content: dict) -> dict:
    """Test accuracies over the seeds; what distilled pictures give above the others, seed by seed."""
    rows = []
    for network in (OWN, OTHER):
        for data, count in cases(content["config"]):
            by_kind = {kind: scores(of_seeds(content, data, count, kind), network) for kind in KINDS}
            distilled = of_seeds(content, data, count, "distilled")
            rows.append(
                {
                    "what": f"{data}, {count}",
                    "network": network,
                    **{kind: estimate(values) for kind, values in by_kind.items()},
                    "longer": estimate(scores(distilled, "longer")) if network == OWN else None,
                    "all": estimate(scores(whole_of(content, data), network)),
                    "gains": {kind: paired(by_kind["distilled"], by_kind[kind]) for kind in BASELINES},
                    "seconds": fmean(result["seconds"] for result in distilled),
                }
            )
    return {"rows": rows}


def table(content: dict) -> Table:
    header = ["data, pictures a class", "network", *TITLES.values(), f"{LONGER * content['config']['steps']} steps"]
    rows = [
        [
            row["what"],
            row["network"],
            *(fixed(row[kind]) for kind in KINDS),
            fixed(row["longer"]) if row["longer"] else "",
            fixed(row["all"]),
        ]
        for row in content["summary"]["rows"]
    ]
    return [*header, "all"], rows


def gains(content: dict) -> Table:
    header = ["distilled minus", "network", *(TITLES[kind] for kind in BASELINES), "seconds of distillation"]
    rows = [
        [
            row["what"],
            row["network"],
            *(fixed(row["gains"][kind], signed=True) for kind in BASELINES),
            f"{row['seconds']:.0f}",
        ]
        for row in content["summary"]["rows"]
    ]
    return header, rows


def choices(content: dict) -> Table:
    """Rates and steps, seed by seed."""
    config, rows = content["config"], []

    def row(what: str, network: str, found: list[dict]) -> list[str]:
        chosen = [result["scores"][network] for result in found]
        return [what, network, *(f"{choice['lr']:g}, {choice['steps']}" for choice in chosen)]

    for network in (OWN, OTHER):
        for data in config["data"]:
            for count in config["per_class"]:
                for kind in KINDS:
                    what, found = f"{data}, {count}: {TITLES[kind]}", of_seeds(content, data, count, kind)
                    if kind == "distilled" and network == OWN:
                        cells = [f"{result['lr']:.3g}, {config['steps']}; round {result['round']}" for result in found]
                        rows.append([what, network, *cells])
                    else:
                        rows.append(row(what, network, found))
            rows.append(row(f"{data}: all", network, whole_of(content, data)))
    return ["pictures", "network", *(f"seed {seed}" for seed in config["seeds"])], rows


def paths(content: dict) -> dict[str, dict[str, Curve]]:
    """Test accuracy while pictures are distilled, beside what other pictures end at."""
    panels = {}
    for data, count in cases(content["config"]):
        found = of_seeds(content, data, count, "distilled")
        rounds = found[0]["rounds"]

        def level(results: list[dict], ends: tuple[int, int] = (rounds[0], rounds[-1])) -> Curve:
            value: Estimate = estimate(scores(results, OWN))
            return curve(ends, [value, value])

        others = {kind: level(of_seeds(content, data, count, kind)) for kind in ("random", "centroid")}
        panels[f"{data}, {count} a class"] = {
            **{TITLES[kind]: line for kind, line in others.items()},
            TITLES["distilled"]: mean_curve(rounds, [result["test"] for result in found]),
            "all": level(whole_of(content, data)),
        }
    return panels


def pictures_of(png: str, classes: int) -> np.ndarray:
    """Of a sheet with a row for each class: [class, n, height, width, 3] uint8; pictures are square."""
    sheet = unpacked(png)
    side = sheet.shape[0] // classes
    return rearrange(sheet, "(label h) (n w) c -> label n h w c", h=side, w=side)


def one_a_class(file: Path, sheets: Mapping[str, str], classes: Sequence[str]) -> None:
    """A row for each class, a column for each kind of pictures."""
    figure = Figure(figsize=(WIDTH, 0.4 + 0.75 * len(classes)), layout="constrained")
    grid = figure.subplots(len(classes), len(sheets), squeeze=False)
    for column, (kind, png) in enumerate(sheets.items()):
        for row, pictures in enumerate(pictures_of(png, len(classes))):
            axes = grid[row, column]
            _show(axes, pictures[0])
            if row == 0:
                axes.set_title(kind, fontsize=10)
            if column == 0:
                name = classes[row].replace(" & ", "\n& ")
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL)
    save(figure, file)


def few_a_class(file: Path, sheets: Mapping[str, str], classes: Sequence[str]) -> None:
    """A panel for each kind of pictures, in it a row for each class."""
    rows = -(-len(sheets) // 2)
    figure = Figure(figsize=(WIDTH, rows * (0.35 + 0.21 * len(classes))), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for number, (axes, (kind, png)) in enumerate(zip(grid.ravel(), sheets.items(), strict=True)):
        pictures = pictures_of(png, len(classes))
        side = pictures.shape[2]
        framed = np.pad(pictures, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
        _show(axes, rearrange(framed, "label n h w c -> (label h) (n w) c"))
        axes.set_title(kind, fontsize=10)
        if number % 2 == 0:
            axes.set_yticks((np.arange(len(classes)) + 0.5) * (side + 1) - 1, classes, fontsize=SMALL)
    save(figure, file)


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def setting(content: dict) -> str:
    config, about = content["config"], content["data"]
    sets = []
    for name in config["data"]:
        channels, height, width = about[name]["shape"]
        parts = ", ".join(f"{about[name][part]} {part}" for part in ("train", "validation", "test"))
        sets.append(
            f"{name} ({len(about[name]['classes'])} classes, {height} x {width}{' in colour' * (channels == 3)}; "
            f"{parts})"
        )
    by_concept = (
        "Emoji are split by concept, so that near-duplicates share a part; how many there are differs a little from "
        "seed to seed. " * ("emoji" in config["data"])
    )
    return (
        f"Data: {' and '.join(sets)}. {by_concept}Networks with "
        f"new initial weights are trained from scratch on a few pictures a class, full batch, by SGD with momentum "
        f"0.9, without augmentation. Distilled pictures start from k-means pictures, stay in [0, 1] and are "
        f"rounded to 8 bits before they are used; {config['rounds']} outer steps of Adam move them and the learning "
        f"rate by the hypergradient through {config['steps']} steps of {INITS} new networks (`{OWN}`), whose "
        f"loss is that of {OUTER_BATCH} training pictures; the round is the best on validation "
        f"pictures of the first and of every {TRACK}th. With `{OWN}` they are tested at their learned rate "
        f"after {config['steps']} steps. "
        f"All else, and distilled pictures with `{OTHER}`, is trained with the learning rate "
        f"({', '.join(f'{lr:g}' for lr in config['lrs'])}) and the number of steps "
        f"({', '.join(map(str, config['few_steps']))}; all pictures, in batches of {WHOLE_BATCH}: "
        f"{', '.join(map(str, config['whole_steps']))}) that are best on validation pictures. Accuracy in % is the "
        f"mean over the classes, on test pictures, of {TEST_INITS} new networks; mean ± standard error over "
        f"seeds ({', '.join(map(str, config['seeds']))}): each has its own split, initial weights and random pictures."
    )


def write_report(record: RunRecord) -> None:
    content, folder = record.content, record.folder
    config = content["config"]
    content["summary"] = summarise(content)
    curves(folder / "rounds.png", paths(content), "outer step", "test accuracy (%)")
    figures = []
    for data, count in cases(config):
        name = f"{data}-{count}.png"
        sheets = {TITLES[kind]: of_seeds(content, data, count, kind)[0]["png"] for kind in KINDS}
        draw = one_a_class if count == 1 else few_a_class
        draw(folder / name, sheets, content["data"][data]["classes"])
        source = " Drawn from Twemoji, copyright Twitter, Inc. and other contributors, CC-BY 4.0." * (data == "emoji")
        figures.append(f"![{data}, {count} a class]({name})")
        figures.append(f"*{data}, {count} a class, seed {config['seeds'][0]}.{source}*")
    write(
        record,
        "Distilled pictures",
        setting(content),
        table(content),
        "`k-means`: the centroids of each class alone; `nearest`: the real picture nearest to each of them. "
        f"`{LONGER * config['steps']} steps`: distilled pictures at their learned rate, for {LONGER} times as many "
        "steps as were differentiated through. `all`: the training part, in batches with each class equally often.",
        *figures,
        "Differences in percentage points, paired by seed, and what distillation took:",
        gains(content),
        "![Test accuracy over the outer steps: above a level line, distilled pictures teach more than those of its "
        "name](rounds.png)",
        f"*`{OWN}`, {config['steps']} steps at the rate of that outer step, {TEST_INITS} new "
        "networks a seed; the bands are standard errors over seeds. Nothing is chosen by this curve.*",
        "Learning rate and steps that were chosen:",
        choices(content),
    )
