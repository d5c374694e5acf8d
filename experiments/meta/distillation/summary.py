"""Means over the seeds, and the tables that are made of them; all from the record's content."""

from collections.abc import Mapping
from statistics import fmean

from experiments.common.estimate import estimate, shown
from experiments.meta.distillation.pieces import BASELINES, LONGER, few_name, whole_name

TITLES = {
    "random": "random",
    "nearest": "nearest",
    "centroid": "k-means",
    "distilled": "distilled",
}
KINDS = (*BASELINES, "distilled")


def networks(config: Mapping) -> tuple[str, str]:
    """What pictures were distilled with, and the other one."""
    own = config["network"]
    return own, "convolutional" if own == "mlp" else "mlp"


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
    """Test accuracies over the seeds; what distilled pictures give above the best of the others, seed by seed."""
    config, rows = content["config"], []
    for network in networks(config):
        for data, count in cases(config):
            by_kind = {kind: scores(of_seeds(content, data, count, kind), network) for kind in KINDS}
            distilled = of_seeds(content, data, count, "distilled")
            gains = {
                kind: [a - b for a, b in zip(by_kind["distilled"], by_kind[kind], strict=True)] for kind in BASELINES
            }
            rows.append(
                {
                    "data": data,
                    "per_class": count,
                    "network": network,
                    **{kind: estimate(values) for kind, values in by_kind.items()},
                    "longer": estimate(scores(distilled, "longer")) if network == config["network"] else None,
                    "all": estimate(scores(whole_of(content, data), network)),
                    "gains": {kind: estimate(values) for kind, values in gains.items()},
                    "seconds": fmean(result["seconds"] for result in distilled),
                }
            )
    return {"rows": rows}


def table(content: dict) -> tuple[list[str], list[list[str]]]:
    steps = content["config"]["steps"]
    header = ["data, pictures a class", "network", *(TITLES[kind] for kind in KINDS)]
    header += [f"{LONGER * steps} steps", "all"]
    rows = []
    for row in content["summary"]["rows"]:
        cells = [f"{row['data']}, {row['per_class']}", row["network"], *(shown(tuple(row[kind])) for kind in KINDS)]
        cells += [shown(tuple(row["longer"])) if row["longer"] else "", shown(tuple(row["all"]))]
        rows.append(cells)
    return header, rows


def gains(content: dict) -> tuple[list[str], list[list[str]]]:
    header = ["distilled minus", "network", *(TITLES[kind] for kind in BASELINES), "seconds of distillation"]
    rows = [
        [
            f"{row['data']}, {row['per_class']}",
            row["network"],
            *(shown(tuple(row["gains"][kind]), signed=True) for kind in BASELINES),
            f"{row['seconds']:.0f}",
        ]
        for row in content["summary"]["rows"]
    ]
    return header, rows


def choices(content: dict) -> tuple[list[str], list[list[str]]]:
    """Rates and steps, seed by seed."""
    config, rows = content["config"], []
    for network in networks(config):
        for data in config["data"]:
            for count in config["per_class"]:
                for kind in KINDS:
                    found = of_seeds(content, data, count, kind)
                    if kind == "distilled" and network == config["network"]:
                        cells = [f"{result['lr']:.3g}, {config['steps']}; round {result['round']}" for result in found]
                    else:
                        cells = [_choice(result, network) for result in found]
                    rows.append([f"{data}, {count}: {TITLES[kind]}", network, *cells])
            rows.append([f"{data}: all", network, *(_choice(result, network) for result in whole_of(content, data))])
    return ["pictures", "network", *(f"seed {seed}" for seed in config["seeds"])], rows


def _choice(result: dict, network: str) -> str:
    return f"{result['scores'][network]['lr']:g}, {result['scores'][network]['steps']}"
