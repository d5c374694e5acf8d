"""Contenders one after the other, each in a process of its own, compared with the plain loop."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from ..measure import Others
from ..worker import Killed, Worker
from .contenders import PLAIN
from .worker import Job

#: What Unroll(memory=) is given, of the plain loop's peak or of the limit: the bar is at a third.
SHARE = 0.3


def run(name: str, job: Job, threads: int) -> dict[str, Any]:
    """A worker's answer; one that the system has killed has died too."""
    words = (name, json.dumps(job._asdict()))
    worker = Worker("benchmarks.large.worker", *words, threads=threads, HF_HUB_OFFLINE="1")
    try:
        return worker.answer()
    except Killed as killed:
        return {"died": str(killed)}
    finally:
        worker.close()


def measure(names: list[str], job: Job, threads: int) -> dict[str, Any]:
    """All figures for one number of steps. The plain loop comes first, if it takes part: the others are held to it."""
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=lambda name: name != PLAIN):
        most = rows.get(PLAIN, {}).get("peak_bytes", job.limit)
        others, children = Others(), _of_children()
        row = run(name, job._replace(memory=int(SHARE * most)), threads)
        row["share_of_other_processes"] = others.share(_of_children() - children)
        rows[name] = row
    compare(rows)
    return {**job._asdict(), "threads": threads, "contenders": rows}


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
            row["cpu_over_plain"] = row["cpu_seconds"] / plain["cpu_seconds"]
            row["peak_over_plain"] = row["peak_bytes"] / plain["peak_bytes"]
            row["difference"] = distance(values[name], values[PLAIN])


def distance(value: dict[str, list[float]], right: dict[str, list[float]]) -> float:
    """The largest difference of a number, relative to the largest number of its kind."""
    pairs = [(torch.tensor(value[kind]), torch.tensor(x)) for kind, x in right.items()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
