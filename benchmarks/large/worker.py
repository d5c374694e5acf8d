"""One run in a process of its own: ``python -m benchmarks.large.worker CONTENDER JOB``, and one line of JSON back.

Peak memory is the largest resident set of the call, above what the process held before; a step on other data has
warmed it up by then. The process may not take more than the job's limit above what it held: an allocation then fails,
as on a machine with so much memory, and the answer is ``{"died": why}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .contenders import call_of
from .network import minilm
from .sentences import reviews


class Job(NamedTuple):
    """What is asked of all contenders."""

    steps: int
    size: int  # examples of a batch
    length: int  # tokens of an example
    over: list[str]
    limit: int  # bytes
    memory: int  # bytes that checkpoint="auto" is given
    repeats: int


def measured(name: str, job: Job) -> dict[str, Any]:
    net, tokenize = minilm()
    call, warm_up = (
        call_of(name, net, reviews(tokenize, steps, job.size, job.length), tuple(job.over), memory)
        for steps, memory in ((job.steps, job.memory), (1, 2**40))
    )
    warm_up()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = status("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + job.limit, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    seconds, value, busy = [], None, time.process_time()
    for _ in range(job.repeats):
        begin = time.perf_counter()
        try:
            value = call()
        except (RuntimeError, MemoryError, ValueError) as error:
            if (bytes_ := _too_few(error, job)) is None:
                raise
            return {"died": f"{bytes_ / 2**30:.1f} GiB were too few", "after_seconds": time.perf_counter() - begin}
        seconds.append(time.perf_counter() - begin)
    assert value is not None
    busy = (time.process_time() - busy) / job.repeats
    peak = status("VmHWM") - held
    value = {kind: x.tolist() for kind, x in value.items()}
    return {"seconds": seconds, "cpu_seconds": busy, "peak_bytes": peak, "value": value}


def _too_few(error: Exception, job: Job) -> int | None:
    """The bytes that an error says were too few: the limit, or what "auto" was given."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return job.limit
    return job.memory if "bytes are too few" in str(error) else None


def status(field: str) -> int:
    """A memory figure of this process in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    warnings.simplefilter("ignore")  # those of other libraries
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        print(json.dumps(measured(name, job)), file=answer)


if __name__ == "__main__":
    main()
