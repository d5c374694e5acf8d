"""One run in a process of its own: ``python -m benchmarks.large.worker CONTENDER JOB``, and one line of JSON back.

Peak memory is the largest resident set of the call, above what the process held before; a step on other data has
warmed it up by then. The process may not take more than the job's limit above what it held: an allocation then fails,
as on a machine with so much memory, and the answer is ``{"died": why}``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.common.memory import peak_above

from ..worker import answering
from .contenders import call_of
from .nets import NETS
from .task import drawn


class Job(NamedTuple):
    """What is asked of all contenders."""

    steps: int
    size: int  # examples of a batch
    length: int  # tokens of an example
    limit: int  # bytes
    memory: int  # bytes that Unroll is given
    net: str = "minilm"


def measured(name: str, job: Job) -> dict[str, Any]:
    net, words = NETS[job.net].load()
    call, warm_up = (
        call_of(name, net, drawn(words, steps, job.size, job.length), memory)
        for steps, memory in ((job.steps, job.memory), (1, 2**40))
    )
    warm_up()

    def limited() -> tuple[dict[str, Tensor], float]:
        resource.setrlimit(resource.RLIMIT_DATA, (_held() + job.limit, resource.RLIM_INFINITY))
        begin = time.perf_counter()
        return call(), time.perf_counter() - begin

    try:
        (value, seconds), mib = peak_above(torch.device("cpu"), limited)
    except (RuntimeError, MemoryError, ValueError) as error:
        if (bytes_ := _too_few(error, job)) is None:
            raise
        return {"died": f"{bytes_ / 2**30:.1f} GiB were too few"}
    return {
        "median_seconds": seconds,
        "peak_bytes": int(2**20 * mib),
        "value": {kind: x.tolist() for kind, x in value.items()},
    }


def _too_few(error: Exception, job: Job) -> int | None:
    """The bytes that an error says were too few: the limit, or what Unroll was given."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return job.limit
    return job.memory if "bytes are too few" in str(error) else None


def _held() -> int:
    """Bytes of data that this process holds (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])


def main() -> None:
    name, job = sys.argv[1], Job(*json.loads(sys.argv[2]))
    with answering() as say:
        say(measured(name, job))


if __name__ == "__main__":
    main()
