"""One contender in a process of its own: ``python -m benchmarks.hypergradient.worker PROBLEM STEPS CONTENDER MODE``.

Mode ``time`` answers each line on stdin by the seconds of a call; ``memory`` says the peak of one call; ``reference``
(the contender is ``-``) gives the hypergradient in float64. Answers are lines of JSON on stdout.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np
import torch

from experiments.common.memory import peak_above

from ..worker import answering
from .contenders import CONTENDERS
from .problems import PROBLEMS
from .reference import reference

#: A call that is shorter is made again and again for so many seconds, and the mean counts.
SHORT = 0.1


def timed(call: Any, once: bool) -> dict[str, float]:
    started = time.process_time()
    gc.collect()
    count, begin = 0, time.perf_counter()
    while not count or (not once and time.perf_counter() - begin < SHORT):
        call()
        count += 1
    return {"seconds": (time.perf_counter() - begin) / count, "used": time.process_time() - started}


def main() -> None:
    name, steps, contender, mode = sys.argv[1:]
    with answering() as say:
        problem = PROBLEMS[name](int(steps) or None)
        if mode == "reference":
            right, tolerance = reference(problem)
            say({"right": right.tolist(), "tolerance": tolerance})
            return
        call = CONTENDERS[contender].make(problem)
        if mode == "memory":
            call()  # compiled code is there already
            say({"peak_mib": peak_above(torch.device("cpu"), call)[1]})
            return
        say("ready")
        for asked in sys.stdin:
            if asked.strip() == "value":
                say(np.asarray(call()).astype(np.float64).tolist())
            else:
                say(timed(call, once=asked.strip() == "once"))


if __name__ == "__main__":
    main()
