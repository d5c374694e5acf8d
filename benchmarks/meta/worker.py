"""One contender in a process of its own: ``python -m benchmarks.meta.worker PROGRAM CONTENDER``.

It answers each line on stdin: ``score`` (only at first) by the score after the meta-steps that all are compared at,
``time`` by the seconds of a meta-step, ``peak`` by the MiB of torch's allocator above what was held before it.
"""

from __future__ import annotations

import gc
import sys
import time

from ..measure import allocated
from ..worker import answering
from .programs import after, begun, scored

STEPS = 20
#: Meta-steps are repeated for so many seconds, and the mean counts.
SHORT = 0.1


def main() -> None:
    program, contender = sys.argv[1:]
    with answering() as say:
        run = begun(program, contender)
        for asked in map(str.strip, sys.stdin):
            if asked == "score":
                begin = time.process_time()
                after(1, run)
                first = time.process_time() - begin
                say({"first": first, **scored(program, STEPS - 1, run)})
            elif asked == "peak":
                say(allocated(lambda: after(3, run))[0] / 2**20)
            else:
                gc.collect()
                count, begin = 0, time.process_time()
                while time.process_time() - begin < SHORT:
                    after(1, run)
                    count += 1
                say((time.process_time() - begin) / count)


if __name__ == "__main__":
    main()
