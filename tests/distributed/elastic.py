"""The FSDP2 example with processes that die: process 1 in the first attempt, then process 0. Run by torchrun."""

from __future__ import annotations

import os
import signal

from examples.finetune_fsdp2 import main

#: Attempt: process, step after which it is killed. No checkpoint is of that step.
DEATHS = {"0": ("1", 14), "1": ("0", 27)}


def die(step: int) -> None:
    if DEATHS.get(os.environ["TORCHELASTIC_RESTART_COUNT"]) == (os.environ["RANK"], step):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(die)
