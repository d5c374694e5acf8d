"""One contender in a process of its own: ``python -m benchmarks.hypergradient.worker PROBLEM STEPS CONTENDER MODE``.

Mode ``time`` answers each line on stdin by the seconds of a call; ``memory`` says the peak of one call; ``reference``
(the contender is ``-``) gives the hypergradient in float64. Answers are lines of JSON on stdout.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch

from ..measure import Peak
from .contenders import CONTENDERS
from .problems import PROBLEMS
from .reference import reference

#: A call that is shorter is made again and again for so many seconds, and the mean counts.
SHORT = 0.1


def timed(call: Any, once: bool) -> dict[str, float]:
    gc.collect()
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    while not count or (not once and time.perf_counter() - begin < SHORT):
        call()
        count += 1
    seconds = time.perf_counter() - begin
    return {"seconds": seconds / count, "busy": time.process_time() - cpu, "wall": seconds}


def peak(call: Any) -> dict[str, float]:
    """MiB above what the process holds before a call that is not the first: compiled code is there already."""
    call()
    peak = Peak()
    call()
    return {"peak_mib": peak.bytes() / 2**20, "held_mib": peak.held / 2**20}


def main() -> None:
    name, steps, contender, mode = sys.argv[1:]
    warnings.simplefilter("ignore")  # the peers' own
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        problem = PROBLEMS[name](int(steps) or None)
        if mode == "reference":
            right, tolerance = reference(problem)
            print(json.dumps({"right": right.tolist(), "tolerance": tolerance}), file=answers)
            return
        call = CONTENDERS[contender].make(problem)
        if mode == "memory":
            print(json.dumps(peak(call)), file=answers)
            return
        print(json.dumps("ready"), file=answers)
        for asked in sys.stdin:
            if asked.strip() == "value":
                print(json.dumps(np.asarray(call()).astype(np.float64).tolist()), file=answers)
            else:
                print(json.dumps(timed(call, once=asked.strip() == "once")), file=answers)


if __name__ == "__main__":
    main()
