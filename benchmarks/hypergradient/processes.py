"""Contenders in processes of their own, timed in turns."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..measure import Others
from ..worker import Worker
from .contenders import CONTENDERS
from .problems import PROBLEMS
from .reference import distance

#: glibc gives what is freed back at once: the peak is that of live memory, not of a fragmented heap.
HEAP_RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def worker(problem: str, steps: int | None, contender: str, mode: str, threads: int, **malloc: str) -> Worker:
    """With the same number of threads for every library; XLA has two pools, and looks at NPROC for one of them."""
    count = str(threads)
    environment = {**malloc, "MKL_NUM_THREADS": count, "NPROC": count, "JAX_PLATFORMS": "cpu"}
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    words = (problem, str(steps or 0), contender, mode)
    return Worker("benchmarks.hypergradient.worker", *words, threads=threads, **environment)


def measure(name: str, steps: int | None, names: list[str], rounds: int) -> dict[str, Any]:
    """All figures of one problem; an error where a contender's hypergradient is not the one in float64."""
    problem = PROBLEMS[name](steps)
    with worker(name, steps, "-", "reference", problem.threads) as of_reference:
        found = of_reference.answer()
    rows, share = _in_turns(name, steps, names, rounds, problem.threads, np.array(found["right"]))
    for row_name in names:
        with worker(name, steps, row_name, "memory", problem.threads, **HEAP_RETURNED) as of_memory:
            rows[row_name] |= of_memory.answer()
    return {
        "what": problem.what,
        "steps": problem.steps,
        "threads": problem.threads,
        "rounds": rounds,
        "share_of_other_processes": share,
        "tolerance": found["tolerance"],
        "contenders": rows,
        "off": off(rows, found["tolerance"]),
    }


def _in_turns(
    name: str, steps: int | None, names: list[str], rounds: int, threads: int, right: np.ndarray
) -> tuple[dict[str, Any], float]:
    """Rows by contender, and the share of the machine that others used meanwhile (the median over rounds)."""
    rows: dict[str, Any] = {}
    answers: dict[str, list[float]] = {n: [] for n in names}
    shares = []
    with ExitStack() as stack:
        workers = {n: stack.enter_context(worker(name, steps, n, "time", threads)) for n in names}
        for own in workers.values():
            assert own.answer() == "ready"
        for n, own in workers.items():
            first = own.ask("once")["seconds"]
            rows[n] = {"first_call_seconds": first, "error": distance(np.array(own.ask("value")), right)}
        for k in range(rounds + 1):  # the first is for warming up
            others, used = Others(), 0.0
            for n in names[k % len(names) :] + names[: k % len(names)]:
                answer = workers[n].ask("again")
                used += answer["used"]
                answers[n].append(answer["seconds"])
            shares.append(others.share(used))
    for n in names:
        rows[n]["median_seconds"] = statistics.median(answers[n][1:])
    unroll = rows["Unroll()"]["median_seconds"] if "Unroll()" in rows else None
    for row in rows.values():
        row["time_over_unroll"] = row["median_seconds"] / unroll if unroll else None
    return rows, statistics.median(shares[1:])


def off(rows: dict[str, Any], tolerance: float) -> list[str]:
    """Contenders whose hypergradient is another one; a strategy that is no exact one has 1 % of room."""
    return [n for n, row in rows.items() if not row["error"] <= (tolerance if CONTENDERS[n].exact else 1e-2)]
