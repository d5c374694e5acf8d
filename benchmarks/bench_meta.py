"""Meta-learning programs written with this package, TorchOpt, higher, and JAX with optax: lines, time and memory.

All contenders of a program start from the same weights, take the same batches and have to reach the same score; another
one is an error. Each has a process of its own with one thread. Lines are those of its function. Time is the CPU time of
a meta-step; that of the first, which compiles where something is compiled, is in the JSON. Peak memory is what torch's
allocator gives out in a meta-step, above what is held before it; JAX has an allocator that does not tell. Prints
Markdown and writes JSON.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from experiments.common.report_kit import markdown

from .measure import machine, options, write
from .meta.lines import lines_of
from .meta.programs import CONTENDERS, PROGRAMS, contenders_of, off
from .worker import Worker

ENVIRONMENT = {
    "MKL_NUM_THREADS": "1", "NPROC": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}  # fmt: skip


def worker(program: str, contender: str) -> Worker:
    return Worker("benchmarks.meta.worker", program, contender, threads=1, **ENVIRONMENT)


def measure(program: str, rounds: int) -> dict[str, Any]:
    names = contenders_of(program)
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(program, name)) for name in names}
        rows = {name: own.ask("score") for name, own in workers.items()}
        for k in range(rounds):
            for name in names[k % len(names) :] + names[: k % len(names)]:
                times[name].append(workers[name].ask("time"))
        for name, row in rows.items():
            row["seconds"] = statistics.median(times[name])
            row["peak_mib"] = None if name == "JAX" else workers[name].ask("peak")
    for name, row in rows.items():  # compiled steps are another strategy, given to the same program
        function = CONTENDERS["ours" if name == "ours, compiled" else name]
        row["lines"] = lines_of(getattr(PROGRAMS[program], function))
    return rows


SHOWN = ("ours", "ours, compiled", "TorchOpt", "higher", "JAX")


def table(programs: dict[str, Any]) -> str:
    """A row for each program; the last cell is our time over that of the quicker of TorchOpt and higher."""
    rows = []
    for program, contenders in programs.items():
        quickest = min(contenders[name]["seconds"] for name in ("TorchOpt", "higher") if name in contenders)
        cells = [_cell(contenders[name]) if name in contenders else "" for name in SHOWN]
        rows.append([program, *cells, f"{contenders['ours']['seconds'] / quickest:.2f}"])
    return "\n".join(markdown(["", *SHOWN, "ours / quicker"], rows))


def _cell(row: dict[str, Any]) -> str:
    peak = "" if row["peak_mib"] is None else f", {row['peak_mib']:.2f} MiB"
    return f"{1e3 * row['seconds']:.2f} ms{peak}, {row['lines']}"


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__, "meta.json", rounds=7)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS), help="default: all")
    args = parser.parse_args(arguments)
    found = {program: measure(program, args.rounds) for program in args.programs}
    peers = {peer: version(peer) for peer in ("torchopt", "higher", "jax", "optax")}
    about = {"machine": {**machine(), "threads": 1, **peers}, "rounds": args.rounds}
    write(args.out, {**about, "programs": found})
    print(table(found))
    wrong = [f"{name} in {program}" for program, rows in found.items() for name in off(rows)]
    if wrong:
        sys.exit(f"another score than ours: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
