"""Many processes on one machine: gloo over a file, many checks in one launch, since starting one takes seconds."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..support.processes import Patience, run

ROOT = Path(__file__).parent.parent.parent
IMPORTED = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor.debug", "pytest")

Check = Callable[[Path], None]
#: What a process says of each check that it has begun: ``None`` until its end, then what went wrong.
Report = dict[str, str | None]


def on(*stages: str) -> Callable[[Check], Check]:
    """A check is a part of these stages of its module, such as "4 processes" or "1 process again"."""

    def mark(check: Check) -> Check:
        vars(check)["stages"] = stages
        return check

    return mark


def gathered(mine: Any) -> list[Any]:
    """What each process has."""
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    return everywhere


def from_one(compute: Callable[[], Any]) -> Any:
    """What process 0 computes, in each: what all would find alike is computed once."""
    told = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    return told[0]


def torchrun(
    module: str, arguments: Sequence[str], processes: int, folder: Path, *options: str, path: Sequence[Path] = ()
) -> str:
    """What processes of a module have printed, started as a user starts them, with ``path`` before other modules."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, ROOT)))
    # By SIGTERM: torchrun then ends its processes.
    done = run([*command, *options, "-m", module, *arguments], by=signal.SIGTERM, cwd=folder, env=environment)
    # First what the processes wrote, last what torchrun makes of it.
    said = done.stderr if len(done.stderr) < 12_000 else f"{done.stderr[:8000]}\n[...]\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{done.stdout}\n{said}"
    return done.stdout


def launch(processes: int, checks: Sequence[Check], folder: Path, idle: float = 60.0) -> dict[str, str]:
    """Run checks, one after the other, in each of ``processes`` processes; after one that fails, in new ones.

    Args:
        idle: Seconds in which the processes have to compute for one.

    Returns:
        What went wrong, by the name of the check: empty for a check that passed everywhere.
    """
    found: dict[str, str] = {}
    left = [check.__name__ for check in checks]
    while left:
        group = Path(tempfile.mkdtemp(prefix="group", dir=folder))
        reports, end = _group(processes, [check for check in checks if check.__name__ in left], folder, group, idle)
        while left:
            name = left.pop(0)
            texts = [_told(rank, report, name) for rank, report in enumerate(reports)]
            found[name] = "".join([*texts, end]) if any(texts) else ""
            if found[name]:
                break  # the processes may have gone on out of step
        else:
            found[name] = end  # nothing, unless they have not left as they should
    return found


def _told(rank: int, report: Report, name: str) -> str:
    if name in report:
        said = report[name]
        return f"process {rank} did not get to its end\n" if said is None else said
    last = next(reversed(report), None)
    return f"process {rank} did not get to it: {'it did not start' if last is None else f'its last check is {last}'}\n"


def _group(processes: int, checks: list[Check], folder: Path, group: Path, idle: float) -> tuple[list[Report], str]:
    """What each process says, and how they ended where not by themselves."""
    # Forked from one process that has imported all, which takes seconds, and done nothing.
    mp.get_context("forkserver").set_forkserver_preload(["hyperopt_ftp", *IMPORTED])
    arguments = (processes, checks, folder, group)
    context = mp.start_processes(_work, arguments, processes, join=False, start_method="forkserver")
    assert context is not None
    patience, end = Patience(context.pids(), idle), ""
    try:
        while not context.join(timeout=1.0):
            if end := patience.lost():
                end += _places(context.pids(), group)
                break
    except Exception as error:
        end = f"{error}\n{_written(group, processes)}"
    for process in context.processes:
        process.kill()
    files = [_report(group, rank) for rank in range(processes)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files], end


def _places(pids: Sequence[int], group: Path) -> str:
    """Where each process is, by its own word."""
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    time.sleep(1.0)
    return _written(group, len(pids))


def _written(group: Path, processes: int) -> str:
    """What processes have said of where they are: all when they are asked, one when it crashes."""
    places = ((rank, _place(group, rank)) for rank in range(processes))
    told = ((rank, file.read_text()) for rank, file in places if file.exists())
    return "".join(f"process {rank} is in\n{text}" for rank, text in told if text)


def _report(group: Path, rank: int) -> Path:
    return group / f"report-{rank}.json"


def _place(group: Path, rank: int) -> Path:
    return group / f"place-{rank}.txt"


def _work(rank: int, processes: int, checks: list[Check], folder: Path, group: Path) -> None:
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with open(_place(group, rank), "w") as place:
        faulthandler.enable(place)  # for crashes in native code
        faulthandler.register(signal.SIGUSR1, place)
        # Who waits in vain is found by the parent.
        store, patience = f"file://{group}/store", timedelta(hours=1)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=patience)
        dist.barrier()  # no check, and no end of one, before the connections of all are made
        said: Report = {}
        for check in checks:
            torch.manual_seed(0)
            _tell(group, rank, said, check, None)
            try:
                check(folder)
                _tell(group, rank, said, check, "")
            except BaseException:  # what pytest.raises and pytest.fail raise is no Exception
                _tell(group, rank, said, check, f"process {rank}: {traceback.format_exc()}\n")
                break  # the others may wait for this one
        else:
            with suppress(RuntimeError):  # where another one has failed and gone
                dist.barrier()  # none leaves while another needs its connection, or writes its report
        dist.destroy_process_group()
        # Without Python's shutdown: DTensor's caches keep gloo's threads alive, and one that lets go of a tensor during
        # the shutdown aborts the process.
        os._exit(0)


def _end_with_launcher() -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _tell(group: Path, rank: int, said: Report, check: Check, text: str | None) -> None:
    said[check.__name__] = text
    part = _report(group, rank).with_suffix(".part")  # whole, or not there: a process may be killed here
    part.write_text(json.dumps(said))
    part.replace(_report(group, rank))
