"""What a run says at its end: the table, report.md and the figures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table

from experiments.classification.data import Pictures
from experiments.classification.methods import TITLES
from experiments.common import checkpoint
from experiments.common.figures import grouped_bars, heat_map, montage
from experiments.common.record import RunRecord

Estimate = tuple[float, float | None]  # mean, standard error (None for a single value)


def estimate(values: list[float]) -> Estimate:
    if len(values) == 1:
        return values[0], None
    return mean(values), stdev(values) / math.sqrt(len(values))


def shown(value: Estimate, signed: bool = False) -> str:
    number = f"{value[0]:+.1f}" if signed else f"{value[0]:.1f}"
    return number if value[1] is None else f"{number} ± {value[1]:.1f}"


def summarise(content: dict, parts: dict[str, Pictures], id_domain: int) -> dict:
    """Means over the seeds, and FTP's paired difference to AdamW."""
    config, results = content["config"], content["results"]

    def over_seeds(method: str, pick: Callable[[dict], float]) -> list[float]:
        return [pick(results[f"{method}-seed{seed}"]) for seed in config["seeds"]]

    domains = parts["test"].domain_names
    rows = {}
    if "accuracy" in content["anchor"]:
        anchor = content["anchor"]
        rows["anchor"] = {
            "accuracy": {name: (anchor["accuracy"][name], None) for name in domains},
            "id": (anchor["id"], None),
            "ood": (anchor["ood"], None),
        }
    for method in config["methods"]:
        rows[method] = {
            "accuracy": {
                name: estimate(over_seeds(method, lambda result, name=name: result["accuracy"][name]))
                for name in domains
            },
            "id": estimate(over_seeds(method, lambda result: result["id"])),
            "ood": estimate(over_seeds(method, lambda result: result["ood"])),
            "seconds": mean(over_seeds(method, lambda result: result["seconds"])),
            "diverged": sum(over_seeds(method, lambda result: result["diverged"])),
        }
    summary = {"methods": rows}
    if {"adamw", "ftp"} <= set(config["methods"]):
        summary["ftp_minus_adamw"] = {
            key: estimate(
                [
                    ftp - adamw
                    for ftp, adamw in zip(
                        over_seeds("ftp", lambda result, key=key: result[key]),
                        over_seeds("adamw", lambda result, key=key: result[key]),
                        strict=True,
                    )
                ]
            )
            for key in ("id", "ood")
        }
    data = content["data"] | {
        "id_domain": domains[id_domain],
        "domains": list(domains),
        "classes": list(parts["test"].classes),
        "items": {name: len(set(part.items)) for name, part in parts.items()},
        "pictures": {name: len(part.items) for name, part in parts.items()},
    }
    return {"summary": summary, "data": data}


def _rows(content: dict) -> tuple[list[str], list[list[str]]]:
    data = content["data"]
    others = [name for name in data["domains"] if name != data["id_domain"]]
    header = ["method", f"ID: {data['id_domain']}", *others, "OOD mean", "seconds"]
    rows = []
    for method, row in content["summary"]["methods"].items():
        title = TITLES[method] + (f" ({row['diverged']} diverged)" if row.get("diverged") else "")
        seconds = row.get("seconds", content["anchor"].get("seconds"))
        accuracies = [shown(value) for value in (row["id"], *(row["accuracy"][name] for name in others), row["ood"])]
        rows.append([title, *accuracies, f"{seconds:.0f}"])
    return header, rows


def _difference(content: dict) -> str | None:
    difference = content["summary"].get("ftp_minus_adamw")
    if difference is None:
        return None
    return (
        f"FTPAdamW minus AdamW, seed by seed: OOD {shown(difference['ood'], signed=True)}, "
        f"ID {shown(difference['id'], signed=True)} points."
    )


def _setting(content: dict) -> str:
    data, config = content["data"], content["config"]
    items, seeds = data["items"], config["seeds"]
    start = "an anchor trained on all domains" if config["anchor"] == "styles" else "plain ImageNet weights"
    return (
        f"Accuracy in % on {items['test']} test items, mean {'± standard error ' if len(seeds) > 1 else ''}over "
        f"fine-tuning seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} (one split, one anchor). "
        f"{items['pretrain']} items for pre-training, {items['finetune']} for fine-tuning, "
        f"{len(data['classes'])} classes. Fine-tuned on {data['id_domain']} alone, from {start}."
    )


def show(record: RunRecord, console: Console) -> None:
    """The table in the terminal."""
    content = record.content
    header, rows = _rows(content)
    table = Table(title="Accuracy (%) after fine-tuning")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(_setting(content))
    if (difference := _difference(content)) is not None:
        console.print(difference)
    console.print(f"Report, figures and numbers: {record.folder} (in all {content['wall_seconds']:.0f} s)")


def write_report(record: RunRecord, parts: dict[str, Pictures]) -> None:
    """report.md and its figures."""
    content, folder = record.content, record.folder
    header, rows = _rows(content)
    domains, methods = content["data"]["domains"], content["summary"]["methods"]
    grouped_bars(
        folder / "accuracy.png",
        [f"{name}\n(ID)" if name == content["data"]["id_domain"] else name for name in domains] + ["OOD mean"],
        {TITLES[m]: [row["accuracy"][name] for name in domains] + [row["ood"]] for m, row in methods.items()},
        "accuracy (%)",
    )
    _montage(folder, parts["test"])
    lines = [
        "# Fine-tuning under a domain shift",
        "",
        _setting(content),
        "",
        "| " + " | ".join(header) + " |",
        "|---" + "|--:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *([_difference(content), ""] if _difference(content) else []),
        "![Accuracy by domain and method](accuracy.png)",
        "",
        "![Some of the test pictures, one row for each domain](pictures.png)",
    ]
    radii = folder / "radii" / f"ftp-seed{content['config']['seeds'][0]}.json"
    if "ftp" in methods:
        observed = json.loads(radii.read_text())
        if observed["steps"]:
            names = [name.removeprefix("network.") for name in observed["layers"]]
            heat_map(folder / "radii.png", names, observed["steps"], observed["radii"], "radius (L1 per row)")
            lines += ["", f"![Radius of every layer over the steps, seed {content['config']['seeds'][0]}](radii.png)"]
    config, versions = content["config"], content["environment"]["packages"]
    lines += [
        "",
        "Config: " + ", ".join(f"{name} {value}" for name, value in config.items()) + ".",
        "",
        f"Python {content['environment']['python']}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        + f"; {content['environment']['threads']} threads; commit {content['environment']['git_commit'] or 'unknown'}.",
    ]
    checkpoint.write_text(folder / "report.md", "\n".join(lines) + "\n")


def _montage(folder: Path, test: Pictures, columns: int = 12) -> None:
    """Random items that are drawn in every domain, or the first ones of each domain where items are not shared."""
    places = [
        {test.items[i]: i for i in (test.domains == number).nonzero().flatten().tolist()}
        for number in range(len(test.domain_names))
    ]
    shared = [item for item in places[0] if all(item in place for place in places)]
    if shared:
        order = torch.randperm(len(shared), generator=torch.Generator().manual_seed(0))[:columns].tolist()
        chosen = [[place[shared[i]] for i in order] for place in places]
    else:
        width = min(columns, *map(len, places))
        chosen = [list(place.values())[:width] for place in places]
    montage(folder / "pictures.png", test.images[torch.tensor(chosen)], list(test.domain_names))
