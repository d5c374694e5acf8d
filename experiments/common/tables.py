"""What a comparison says at its end: means over seeds, the table, report.md and the figures."""

from collections.abc import Mapping
from statistics import mean

from experiments.common.comparison import best
from experiments.common.estimate import Estimate, estimate
from experiments.common.methods import title
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, bullets, fixed, write
from experiments.common.score_figures import trade_off, unbeaten
from experiments.common.task import Task

ANCHOR = "anchor"
NOTES = {
    "wise": " WiSE-FT is made of AdamW's weights: its cost is AdamW's.",
    "wise_ftp": " WiSE-FT of FTPAdamW is made of that one's weights, at that one's cost.",
    "lines": " LiNeS is made of AdamW's weights, too.",
    "model_stock": " Model Stock is made of AdamW's weights and those of a second training: its time is that of both.",
    "learned_wise": " WiSE-FT with learned shares learns them on held-out examples, and trains on the rest; its "
    "learning rate is chosen on the same held-out ones, which favours it slightly.",
    "tpgm": " TPGM trains on fewer examples, for as many steps: it learns its radii on those that it holds out, on "
    "which its learning rate is chosen too, which favours it slightly.",
}
SUMS = ("id", "ood", "corrupted")
FACTS = ("seconds", "images_per_second", "peak_mib")


def summarise(content: dict, task: Task) -> dict:
    """Means over the seeds, and the paired difference of every method to AdamW."""
    config, results = content["config"], content["results"]

    def over_seeds(method: str, name: str) -> list[float]:
        return [results[f"{method}-seed{seed}"][name] or 0.0 for seed in config["seeds"]]

    def minus_adamw(method: str, name: str) -> Estimate:
        pairs = zip(over_seeds(method, name), over_seeds("adamw", name), strict=True)
        return estimate([own - plain for own, plain in pairs])

    columns = list(task.columns)
    rows: dict[str, dict] = {}
    if "scores" in content["anchor"]:
        rows[ANCHOR] = {"columns": {name: (content["anchor"][name], None) for name in columns}}
    for method in config["methods"]:
        rows[method] = {
            "columns": {name: estimate(over_seeds(method, name)) for name in columns},
            **{fact: mean(over_seeds(method, fact)) for fact in FACTS},
            "lr": results[f"{method}-seed{config['seeds'][0]}"]["lr"],
            "diverged": int(sum(over_seeds(method, "diverged"))),
        }
    compared = [method for method in config["methods"] if method != "adamw" and "adamw" in config["methods"]]
    differences = {method: {name: minus_adamw(method, name) for name in ("id", "ood")} for method in compared}
    shared = {"metric": task.metric, "columns": columns, "titles": dict(task.titles)}
    return {"summary": {"methods": rows, "minus_adamw": differences, **shared}}


def table_of(summary: Mapping, narrow: bool = False) -> Table:
    """Header and rows as text; `narrow`: of many columns those alone that sum up others."""
    columns, titles = summary["columns"], summary["titles"]
    if narrow and len(columns) > 5:
        columns = [name for name in columns if name in SUMS]
    speed = titles.get("images_per_second", "images/s")
    header = ["method", *(titles.get(name, name) for name in columns), "lr", speed, "peak MiB"]
    rows = []
    for method, row in summary["methods"].items():
        name = title(method) + (f" ({row['diverged']} diverged)" if row.get("diverged") else "")
        facts = ["", "", ""]
        if method != ANCHOR:
            facts = [f"{row['lr']:g}", f"{row['images_per_second']:.0f}", f"{row['peak_mib']:.0f}"]
        rows.append([name, *(fixed(row["columns"][c]) for c in columns), *facts])
    return header, rows


def differences(summary: Mapping) -> list[str]:
    return [
        f"{title(method)} minus AdamW, seed by seed: OOD {fixed(difference['ood'], signed=True)}, "
        f"ID {fixed(difference['id'], signed=True)} points."
        for method, difference in summary["minus_adamw"].items()
    ]


def write_report(record: RunRecord, heading: str, setting: str, pictures: str) -> None:
    """report.md with the table and the figures; `pictures` says what pictures.png shows, if there is one."""
    content, folder = record.content, record.folder
    summary = content["summary"]
    header, rows = table_of(summary)
    titles, methods = summary["titles"], summary["methods"]
    x, y = (f"{titles.get(column, column)}, {summary['metric']} (%)" for column in ("id", "ood"))
    points = {title(m): (row["columns"]["id"], row["columns"]["ood"]) for m, row in methods.items()}
    trade_off(folder / "trade-off.png", points, (x, y))
    metric = summary["metric"]
    write(
        record,
        heading,
        setting,
        (header, rows),
        "Examples per second and peak memory (of the whole process, data and libraries included) are those of training."
        + "".join(note for method, note in NOTES.items() if method in methods),
        bullets(differences(summary)),
        *rates_tried(content.get("rates", {}), metric),
        *strengths_tried(content.get("strengths", {}), metric),
        "![What is learned in distribution against what is kept out of distribution. "
        f"{unbeaten(points)}](trade-off.png)",
        f"![{pictures}](pictures.png)" if pictures else None,
    )


def rates_tried(tried: Mapping[str, Mapping[str, float]], metric: str) -> list[str | Table]:
    """The learning rates that were tried, and where the best one is at the edge of what was tried."""
    tried = {method: rates for method, rates in tried.items() if rates}
    if not tried:
        return []
    lrs = sorted({lr for rates in tried.values() for lr in rates}, key=float)

    def cell(rates: Mapping[str, float], lr: str) -> str:
        if lr not in rates:
            return ""
        score = "diverged" if rates[lr] < 0 else f"{rates[lr]:.1f}"
        ends = sorted(rates, key=float)
        at_edge = len(ends) > 1 and lr in (ends[0], ends[-1])
        return f"{score} (chosen{', edge' if at_edge else ''})" if float(lr) == best(rates) else score

    rows = [[title(method), *(cell(rates, lr) for lr in lrs)] for method, rates in tried.items()]
    return [
        f"Learning rates that were tried, with the {metric} (%) on held-out examples of what is learned first; "
        "nothing else, and no test example, was looked at. Where the best is at an edge, a better one may lie beyond:",
        (["method", *lrs], rows),
    ]


def strengths_tried(tried: Mapping[str, Mapping[str, float]], metric: str) -> list[str]:
    """The strengths that were tried, each method's own scale."""
    lines = []
    for method, scores in tried.items():
        if scores:
            cells = [f"{number}: {'diverged' if scores[number] < 0 else f'{scores[number]:.1f}'}" for number in scores]
            lines.append(f"{title(method)}: {', '.join(cells)}; chosen {best(scores):g}.")
    about = f"Strengths that were tried at the chosen learning rate, with the same {metric}:"
    return [about, bullets(lines)] if lines else []
