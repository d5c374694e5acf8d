"""Contenders one after the other, each in a process of its own, compared with the plain loop; a table of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from experiments.common.report_kit import markdown

from ..measure import Others, in_threads
from ..worker import Worker
from .contenders import PLAIN
from .worker import Job

HEAD = ["", "peak", "of the plain loop's", "time", "of the plain loop's", "difference"]
#: What Unroll(memory=) is given, of the plain loop's peak or of the limit: the bar is at a third.
SHARE = 0.3


def measure(names: list[str], job: Job, threads: int) -> dict[str, Any]:
    """All figures for one number of steps. The plain loop comes first, if it takes part: the others are held to it."""
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=lambda name: name != PLAIN):
        most = rows.get(PLAIN, {}).get("peak_bytes", job.limit)
        others, children = Others(), _of_children()
        words = (name, json.dumps(job._replace(memory=int(SHARE * most))))
        with Worker("benchmarks.large.worker", *words, threads=threads, HF_HUB_OFFLINE="1") as worker:
            row = worker.answer()
        row["share_of_other_processes"] = others.share(_of_children() - children)
        rows[name] = row
    compare(rows)
    return {**job._asdict(), "threads": threads, "contenders": rows}


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("median_seconds", "time_over_plain")}


def merged(runs: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs with a record, in the place of that of the same job if there is one."""

    def job(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["net"], -run["size"], run["steps"], run["length"]

    return sorted([*(run for run in runs if job(run) != job(record)), record], key=job)


def _of_children() -> float:
    """Seconds that processes have worked which this one has started and which have ended."""
    return sum(os.times()[2:4])


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """What each takes of the plain loop's; values are too many to be kept."""
    values = {name: row.pop("value") for name, row in rows.items() if "value" in row}
    plain = rows.get(PLAIN, {})
    for name, row in rows.items():
        if name in values and PLAIN in values:
            row["time_over_plain"] = row["median_seconds"] / plain["median_seconds"]
            row["peak_over_plain"] = row["peak_bytes"] / plain["peak_bytes"]
            row["difference"] = distance(values[name], values[PLAIN])


def distance(value: dict[str, list[float]], right: dict[str, list[float]]) -> float:
    """The largest difference of a number, relative to the largest number of its kind."""
    pairs = [(torch.tensor(value[kind]), torch.tensor(x)) for kind, x in right.items()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def table(record: dict[str, Any]) -> str:
    rows = record["contenders"]
    busy = max(row["share_of_other_processes"] for row in rows.values())
    found = [[name, *_cells(row)] for name, row in rows.items()]
    shown = [k for k in range(len(HEAD)) if any(cells[k] for cells in found)]
    lines = [
        f"**{record['steps']} steps** of {record['size']} x {record['length']} tokens ({in_threads(record)}, "
        f"at most {record['limit'] / 2**30:.1f} GiB, other processes at most "
        f"{100 * busy:.0f} % of the machine)",
        "",
        *markdown([HEAD[k] for k in shown], [[cells[k] for k in shown] for cells in found]),
    ]
    return "\n".join(lines)


def peaks(runs: list[dict[str, Any]]) -> str:
    """The peaks alone of several records, a row for each."""
    names = list(dict.fromkeys(name for run in runs for name in run["contenders"]))
    rows = [
        [
            f"{run['net']}, {run['steps']} steps of {run['size']} x {run['length']}",
            *(_peak(run["contenders"].get(name), run["limit"]) for name in names),
        ]
        for run in runs
    ]
    return "\n".join(markdown(["", *names], rows))


def _peak(row: dict[str, Any] | None, limit: int) -> str:
    if row is None:
        return ""
    return f"over {limit / 2**30:.0f} GiB" if "died" in row else f"{row['peak_bytes'] / 2**30:.2f} GiB"


def draw(runs: list[dict[str, Any]], out: Path) -> None:
    """The peak of each contender by the length of the sequences, in the job that was run with most lengths."""
    from matplotlib.figure import Figure

    jobs = [(run["net"], run["steps"], run["size"]) for run in runs]
    job = max(jobs, key=jobs.count)
    chosen = [run for run, other in zip(runs, jobs, strict=True) if other == job]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(dict.fromkeys(name for run in chosen for name in run["contenders"])):
        found = {run["length"]: (run["contenders"][name], run["limit"]) for run in chosen if name in run["contenders"]}
        peak = {length: row["peak_bytes"] / 2**30 for length, (row, _) in found.items() if "died" not in row}
        axes.plot([*peak], [*peak.values()], marker="o", color=f"C{k}", label=name)
        died = {length: limit / 2**30 for length, (row, limit) in found.items() if "died" in row}
        axes.plot([x + 2 * k for x in died], [*died.values()], "x", color=f"C{k}")  # beside each other
    axes.set(
        xlabel="tokens of a sequence", ylabel="peak, GiB", ylim=(0, None), xticks=[run["length"] for run in chosen],
        title=f"{job[0]}, {job[1]} steps of {job[2]} sequences; x: died at this limit",
    )  # fmt: skip
    axes.legend(loc="center")
    figure.savefig(out, dpi=150)


def _cells(row: dict[str, Any]) -> list[str]:
    if "died" in row:
        return ["died: " + row["died"], "", "", "", ""]
    of_plain = [f"{row[key]:.2f}" if key in row else "" for key in ("peak_over_plain", "time_over_plain")]
    difference = f"{row['difference']:.1e}" if "difference" in row else ""
    return [
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
        of_plain[0],
        f"{row['median_seconds']:.1f} s",
        of_plain[1],
        difference,
    ]
