"""``python leash.py PARENT SIGNAL COMMAND...`` becomes COMMAND, which gets SIGNAL when PARENT ends, however it does.

Linux only: elsewhere it only becomes COMMAND.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with(parent: int, by: int) -> None:
    """This process gets a signal when its parent ends; it ends at once where that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    end_with(int(sys.argv[1]), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
