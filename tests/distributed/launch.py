"""Many processes on one machine: gloo over a file, every check in one launch, since starting one takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).parent.parent.parent

Check = Callable[[Path], None]


def torchrun(module: str, arguments: Sequence[str], processes: int, folder: Path, *options: str) -> str:
    """What processes of a module have printed, started as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *options, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    # First what the processes wrote, last what torchrun makes of it.
    said = done.stderr if len(done.stderr) < 12_000 else f"{done.stderr[:8000]}\n[...]\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{done.stdout}\n{said}"
    return done.stdout


def launch(processes: int, checks: Sequence[Check], folder: Path) -> dict[str, str]:
    """Run checks, one after the other, in each of ``processes`` processes.

    Returns:
        What went wrong, by the name of the check: empty for a check that passed everywhere.
    """
    context = mp.start_processes(_work, (processes, list(checks), folder), processes, join=False, start_method="spawn")
    assert context is not None
    died, end = "", time.monotonic() + 240
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):  # returns at the first that is done
            if time.monotonic() >= end:
                died = "the processes have not ended in 240 s\n"
                break
    except Exception as error:
        died = f"{error}\n"
    for process in context.processes:
        process.kill()
    found = {check.__name__: "" for check in checks}
    for rank in range(processes):
        report = folder / f"report{processes}-{rank}.json"
        said = json.loads(report.read_text()) if report.exists() else {}
        for name in found:
            found[name] += said.get(name, f"process {rank} did not get to it\n{died}")
    return found


def _work(rank: int, processes: int, checks: list[Check], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store{processes}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=timedelta(seconds=60))
    dist.barrier()  # no check, and no end of one, before the connections of all are made
    report = folder / f"report{processes}-{rank}.json"
    said: dict[str, str] = {}
    for check in checks:
        torch.manual_seed(0)
        try:
            check(folder)
            said[check.__name__] = ""
        except BaseException:  # what pytest.raises and pytest.fail raise is no Exception
            said[check.__name__] = f"process {rank}: {traceback.format_exc()}\n"
        part = report.with_suffix(".part")  # whole, or not there: a process may be killed here because another failed
        part.write_text(json.dumps(said))
        part.replace(report)
        if said[check.__name__]:
            break  # the others may wait for this one
    else:
        with suppress(RuntimeError):  # where another one has failed and gone
            dist.barrier()  # none leaves while another needs its connection, or writes its report
    dist.destroy_process_group()
    # Without Python's shutdown: DTensor's caches keep gloo's threads alive, and one that lets go of a tensor during the
    # shutdown aborts the process.
    os._exit(0)
