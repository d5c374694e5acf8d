"""The command line of all studies."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from experiments.common.cli import guarded
from experiments.common.errors import InputError
from experiments.studies.jobs import FAST, FULL, Job
from experiments.studies.publish import kept_of, publish, redraw

ROOT = Path(__file__).resolve().parents[2]


def run_job(job: Job, out: Path, threads: int, console: Console) -> None:
    """In a process of its own; what it says goes into a file, unless it runs alone. A finished run shows its table."""
    folder, begin = out / job.name, time.monotonic()
    command = [sys.executable, "-m", job.module, *job.arguments, "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    console.print(f"{job.name}: {job.about}")
    if job.alone:
        status = subprocess.run(command, env=environment).returncode
    else:
        with open(out / f"{job.name}.log", "a") as log:
            status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        where = "" if job.alone else f"; see {out / job.name}.log"
        raise InputError(f"{job.name} ended with status {status}{where}")
    console.print(f"{job.name}: done in {time.monotonic() - begin:.0f} s")


def run_all(jobs: Sequence[Job], out: Path, workers: int, console: Console) -> None:
    """Several at once, with the cores shared among them; then, one by one, those that measure time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = [job for job in jobs if not job.alone]
    with ThreadPoolExecutor(workers) as pool:
        threads = max(1, cores // workers)
        started = [pool.submit(run_job, job, out, threads, console) for job in together]
        try:
            for ended in as_completed(started):
                ended.result()
        except BaseException:  # what has begun ends by itself (Ctrl-C reaches it too); nothing else begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job in jobs:
        if job.alone:
            run_job(job, out, cores, console)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies",
        description="Run the studies, each in a folder of its own; stopped, the same command goes on. With --publish "
        "their reports, figures and numbers are copied to where they are kept.",
        allow_abbrev=False,
    )
    parser.add_argument("--fast", action="store_true", help="one seed, AdamW and FTP, K up to 4; within 15 minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(job.name for job in FULL)}")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="runs at the same time (default: 2)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/studies, or runs/studies-fast")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="copy what is kept there: docs/studies")
    parser.add_argument(
        "--redraw",
        type=Path,
        metavar="FOLDER",
        help="run nothing: draw the figures kept there again, from their numbers",
    )
    parsed = parser.parse_args(arguments)
    to = console or Console()

    def work() -> None:
        jobs = FAST if parsed.fast else FULL
        names = [job.name for job in jobs]
        if unknown := [name for name in parsed.only or () if name not in names]:
            raise InputError(f"--only {' '.join(unknown)}: the studies are {', '.join(names)}")
        if parsed.fast and parsed.publish is not None:
            raise InputError("--publish is for the full studies; what is kept has at least three seeds")
        if parsed.workers < 1:
            raise InputError(f"--workers {parsed.workers}: must be at least 1")
        chosen = [job for job in jobs if not parsed.only or job.name in parsed.only]
        if parsed.redraw is not None:
            if not (kept := kept_of(chosen, parsed.redraw)):
                raise InputError(
                    f"--redraw {parsed.redraw}: no finished run of {', '.join(j.name for j in chosen)} there"
                )
            for job in kept:
                drawn, stay = redraw(job, parsed.redraw / job.name)
                why = f"; as they were, for want of numbers: {', '.join(stay)}" if stay else ""
                to.print(f"{job.name}: drawn again {', '.join(drawn) or 'nothing'}{why}")
            return
        out = parsed.out or Path("runs/studies-fast" if parsed.fast else "runs/studies")
        out.mkdir(parents=True, exist_ok=True)
        run_all(chosen, out, parsed.workers, to)
        if parsed.publish is not None:
            publish(jobs, out, parsed.publish)
            to.print(f"Published: {parsed.publish}")

    return guarded(work)
