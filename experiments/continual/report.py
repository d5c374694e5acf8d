"""What the study says at its end: means over seeds, the table, report.md and the figure."""

from collections.abc import Callable, Mapping
from statistics import mean

from rich.console import Console

from experiments.common import checkpoint
from experiments.common.estimate import Estimate, estimate, shown
from experiments.common.record import RunRecord
from experiments.common.score_figures import in_turn
from experiments.common.tables import in_terminal, markdown, provenance, rates_tried, where
from experiments.continual.methods import METHODS
from experiments.continual.metrics import MEASURES
from experiments.continual.sequence import name_of

HEADING = "One style after the other"
FIGURE = "continual.png"


def summarise(content: dict) -> dict:
    """Means over the seeds, and differences of methods seed by seed."""
    config = content["config"]
    order, seeds, methods = config["order"], config["seeds"], config["methods"]

    def values(method: str, pick: Callable[[dict], float]) -> list[float]:
        return [pick(content["results"][name_of(method, seed)]) for seed in seeds]

    rows = {}
    for method in methods:
        rows[method] = {
            **{name: estimate(values(method, lambda result, n=name: result[n])) for name in MEASURES},
            # [task that was learnt][style]
            "scores": [
                [estimate(values(method, lambda r, i=i, s=style: r["tasks"][i]["scores"][s])) for style in order]
                for i in range(len(order))
            ],
            "lr": content["results"][name_of(method, seeds[0])]["lr"],
            "seconds": mean(values(method, lambda r: sum(task["seconds"] for task in r["tasks"]))),
            "diverged": int(sum(values(method, lambda r: any(task["diverged"] for task in r["tasks"])))),
        }
    differences = []
    for one, other in compared(methods):
        pairs = {
            name: zip(values(one, lambda r, n=name: r[n]), values(other, lambda r, n=name: r[n]), strict=True)
            for name in MEASURES
        }
        by_name = {name: estimate([own - others for own, others in both]) for name, both in pairs.items()}
        differences.append({"method": one, "minus": other, **by_name})
    return {"methods": rows, "differences": differences}


def compared(methods: list[str]) -> list[tuple[str, str]]:
    """Every method with AdamW, and FTP with itself."""
    found = [(method, "adamw") for method in methods if method != "adamw" and "adamw" in methods]
    if {"ftp_moved", "ftp_kept"} <= set(methods):
        found.append(("ftp_moved", "ftp_kept"))
    return found


def setting(content: dict) -> str:
    data, config = content["data"], content["config"]
    items, seeds, order = data["items"], config["seeds"], config["order"]
    return (
        f"Accuracy in % on {items['test']} test emoji in each style, "
        f"mean {'± standard error ' if len(seeds) > 1 else ''}over seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))} (one split). Learnt one after the other, from plain ImageNet weights: "
        f"{', then '.join(order)}; the same {items['finetune']} emoji each time, {len(data['classes'])} classes, "
        f"{config['epochs']} epochs for each. The columns of styles are those after the last task."
    )


def table_of(content: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text."""
    header = ["method", *(name.replace("_", " ") for name in MEASURES), *content["config"]["order"], "lr"]
    rows = []
    for method, row in content["summary"]["methods"].items():
        name = METHODS[method].title + (f" ({row['diverged']} diverged)" if row["diverged"] else "")
        cells = [shown(value) for value in (*(row[measure] for measure in MEASURES), *row["scores"][-1])]
        rows.append([name, *cells, f"{row['lr']:g}"])
    return header, rows


def differences(content: Mapping) -> list[str]:
    return [
        f"{METHODS[found['method']].title} minus {METHODS[found['minus']].title}, seed by seed: average accuracy "
        f"{shown(found['average_accuracy'], signed=True)}, forgetting {shown(found['forgetting'], signed=True)}, "
        f"learning accuracy {shown(found['learning_accuracy'], signed=True)} points."
        for found in content["summary"]["differences"]
    ]


def show(record: RunRecord, console: Console) -> None:
    """The table in the terminal."""
    in_terminal(console, HEADING, *table_of(record.content))
    console.print(setting(record.content))
    for line in differences(record.content):
        console.print(line)
    console.print(where(record))


def write_report(record: RunRecord) -> None:
    content, order = record.content, record.content["config"]["order"]
    panels: dict[str, dict[str, list[Estimate]]] = {
        f"tested in {style}": {
            METHODS[method].title: [scores[number] for scores in row["scores"]]
            for method, row in content["summary"]["methods"].items()
        }
        for number, style in enumerate(order)
    }
    in_turn(record.folder / FIGURE, panels, [f"after\n{style}" for style in order], "accuracy (%)")
    text = [
        f"# {HEADING}",
        "",
        setting(content),
        "",
        *markdown(*table_of(content)),
        "",
        "Average accuracy: over the styles, after the last task. Forgetting: of all styles but the last, the best "
        "accuracy before the last task minus that after it. Learning accuracy: of every style just after it was "
        "learnt.",
        "",
        *(f"- {line}" for line in differences(content)),
        "",
        *rates_tried(content.get("rates", {}), lambda method: METHODS[method].title, "accuracy"),
        f"![Accuracy in each style after each task: where a line falls after its own style was learnt, the method has "
        f"forgotten some of it]({FIGURE})",
        "",
        *provenance(content),
    ]
    checkpoint.write_text(record.folder / "report.md", "\n".join(text) + "\n")
