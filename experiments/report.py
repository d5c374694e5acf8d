"""`python -m experiments.report RUN...`: runs of one study side by side, and what differs in their configs."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.common import checkpoint
from experiments.common.cli import guarded
from experiments.common.errors import InputError
from experiments.common.estimate import shown
from experiments.common.looks import LOOKS, MARKERS, Look
from experiments.common.methods import title
from experiments.common.score_figures import trade_off, unbeaten
from experiments.common.tables import SUMS, in_terminal, markdown

HEADING = "Runs side by side"


def read(folder: Path) -> dict:
    """The record of a finished comparison of methods."""
    try:
        content = json.loads((folder / "metrics.json").read_text())
        status, shared = content["status"], "metric" in content.get("summary", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no run ({type(error).__name__}); give folders with a metrics.json") from error
    if status != "finished":
        raise InputError(f"the run in {folder} is not finished; run its command again to go on with it")
    if not shared:
        kind = content["experiment"]
        raise InputError(f"{folder} holds a run of '{kind}', whose table is another; see its report.md")
    return content


def compared(runs: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """A row for each run and method, with the columns that all runs have."""
    metrics = {content["summary"]["metric"] for content in runs.values()}
    if len(metrics) > 1:
        raise InputError(f"the runs measure different things ({', '.join(sorted(metrics))}); compare runs of one study")
    first, *others = (content["summary"] for content in runs.values())
    columns = [name for name in first["columns"] if all(name in other["columns"] for other in others)]
    if len(columns) > 5:
        columns = [name for name in columns if name in SUMS]
    rows = []
    for run, content in runs.items():
        for method, row in content["summary"]["methods"].items():
            lr = f"{row['lr']:g}" if "lr" in row else ""
            rows.append([run, title(method), *(shown(row["columns"][name]) for name in columns), lr])
    return ["run", "method", *(first["titles"].get(name, name) for name in columns), "lr"], rows


def differences(runs: dict[str, dict]) -> list[str]:
    """Options that are not the same in all runs."""
    configs = [content["config"] for content in runs.values()]
    names = sorted({name for config in configs for name in config})
    return [
        f"{name}: " + ", ".join(f"{config.get(name)} in {run}" for run, config in zip(runs, configs, strict=True))
        for name in names
        if any(config.get(name) != configs[0].get(name) for config in configs)
    ]


def write(out: Path, runs: dict[str, dict]) -> None:
    """report.md and trade-off.png."""
    metric = next(iter(runs.values()))["summary"]["metric"]
    points = {
        f"{run}: {title(method)}": (row["columns"]["id"], row["columns"]["ood"])
        for run, content in runs.items()
        for method, row in content["summary"]["methods"].items()
    }
    look = {  # a run has its marker, so that the same method in two runs is told apart
        f"{run}: {title(method)}": Look(LOOKS[title(method)].colour, MARKERS[number % len(MARKERS)])
        for number, (run, content) in enumerate(runs.items())
        for method in content["summary"]["methods"]
    }
    axes = (f"in distribution, {metric} (%)", f"out of distribution, {metric} (%)")
    trade_off(out / "trade-off.png", points, axes, look)
    lines = [
        f"# {HEADING}",
        "",
        *markdown(*compared(runs)),
        "",
        *(f"- {line}" for line in differences(runs)),
        "",
        f"![In distribution against out of distribution. {unbeaten(points)}](trade-off.png)",
    ]
    checkpoint.write_text(out / "report.md", "\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write report.md and trade-off.png there as well")
    parsed = parser.parse_args(arguments)
    to = console or Console()

    def work() -> None:
        if len({folder.resolve() for folder in parsed.runs}) < len(parsed.runs):
            raise InputError("a run is given twice")
        names = [folder.resolve().name for folder in parsed.runs]
        shown_as = names if len(set(names)) == len(names) else [str(folder) for folder in parsed.runs]
        runs = {name: read(folder) for name, folder in zip(shown_as, parsed.runs, strict=True)}
        in_terminal(to, HEADING, *compared(runs), labels=2)
        for line in differences(runs):
            to.print(line)
        if parsed.out is not None:
            write(parsed.out, runs)
            to.print(f"Written: {parsed.out}")

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
