"""Contenders in processes of their own, timed in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from ..measure import Others
from .contenders import CONTENDERS
from .problems import PROBLEMS
from .reference import distance

#: glibc gives what is freed back at once: the peak is that of live memory, not of a fragmented heap.
HEAP_RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def environment(threads: int, malloc: dict[str, str]) -> dict[str, str]:
    """The same number of threads for every library; XLA has two pools, and looks at NPROC for one of them."""
    count = str(threads)
    found = {**os.environ, **malloc, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "NPROC": count}
    found["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return found


class Worker:
    """A process with one contender."""

    def __init__(self, problem: str, steps: int | None, contender: str, mode: str, threads: int, **malloc: str) -> None:
        self.what = f"{contender} on {problem}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        words = [problem, str(steps or 0), contender, mode]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hypergradient.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(threads, malloc),
        )

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.what} ended with {self.process.returncode}:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.communicate()  # closes stdin, where it stops reading
        self.errors.close()


def measure(name: str, steps: int | None, names: list[str], rounds: int) -> dict[str, Any]:
    """All figures of one problem; an error where a contender's hypergradient is not the one in float64."""
    problem = PROBLEMS[name](steps)
    threads = problem.threads
    worker = Worker(name, steps, "-", "reference", threads)
    found = worker.answer()
    worker.close()
    right, tolerance = np.array(found["right"]), found["tolerance"]
    rows, share = _in_turns(name, steps, names, rounds, threads, right)
    record: dict[str, Any] = {
        "what": problem.what,
        "steps": problem.steps,
        "threads": threads,
        "rounds": rounds,
        "share_of_other_processes": share,
        "hypergradient_norm": float(np.linalg.norm(right)),
        "tolerance": tolerance,
        "contenders": rows,
    }
    for row_name in names:
        worker = Worker(name, steps, row_name, "memory", threads, **HEAP_RETURNED)
        rows[row_name] |= worker.answer()
        worker.close()
    record["off"] = off(rows, tolerance)
    return record


def _in_turns(
    name: str, steps: int | None, names: list[str], rounds: int, threads: int, right: np.ndarray
) -> tuple[dict[str, Any], float]:
    """Rows by contender, and the share of the machine that others used meanwhile (the median over rounds)."""
    workers: dict[str, Worker] = {}
    try:
        rows: dict[str, Any] = {}
        for n in names:
            workers[n] = Worker(name, steps, n, "time", threads)
        for n in names:
            assert workers[n].answer() == "ready"
        for n in names:
            rows[n] = {"kind": CONTENDERS[n].kind, "first_call_seconds": workers[n].ask("once")["seconds"]}
            rows[n]["error"] = distance(np.array(workers[n].ask("value")), right)
        answers: dict[str, list[dict[str, float]]] = {n: [] for n in names}
        shares = []
        for k in range(rounds + 1):  # the first is for warming up
            others, busy = Others(), 0.0
            for n in names[k % len(names) :] + names[: k % len(names)]:
                answer = workers[n].ask("again")
                busy += answer["busy"]
                if k:
                    answers[n].append(answer)
            if k:
                shares.append(others.share(busy))
    finally:
        for worker in workers.values():
            worker.close()
    for n in names:
        rows[n]["median_seconds"] = statistics.median(a["seconds"] for a in answers[n])
        rows[n]["seconds"] = [a["seconds"] for a in answers[n]]
        rows[n]["cores"] = sum(a["busy"] for a in answers[n]) / sum(a["wall"] for a in answers[n])
    unroll = rows["Unroll()"]["median_seconds"] if "Unroll()" in rows else None
    for row in rows.values():
        row["time_over_unroll"] = row["median_seconds"] / unroll if unroll else None
    return rows, statistics.median(shares)


def off(rows: dict[str, Any], tolerance: float) -> list[str]:
    """Contenders whose hypergradient is another one; a strategy that is no exact one has 1 % of room."""
    return [n for n, row in rows.items() if not row["error"] <= (tolerance if CONTENDERS[n].exact else 1e-2)]
