"""Processes that tests launch: they end with the test that launched them, and may take as long as they compute.

A clock cannot tell a process that waits for ever from one on a loaded machine: the processor time of all of them can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

LEASH = Path(__file__).with_name("leash.py")


class Patience:
    """Says when to give up processes: see ``lost``.

    Args:
        pids: Of the processes; their children count too.
        idle: Seconds in which all of them together have to compute for one. With n other processes on two cores their
            part of a minute is 120 / (n + 2) seconds, so a hundred others do no harm.
        most: Seconds of processor time that they may take in all.
    """

    def __init__(self, pids: Sequence[int], idle: float = 60.0, most: float = 1200.0) -> None:
        self.pids, self.idle, self.most = pids, idle, most
        self.mark, self.since = 0.0, time.monotonic()

    def lost(self) -> str:
        """Why nothing more is to be expected; empty as long as something is."""
        spent, now = sum(map(_spent, self.pids)), time.monotonic()
        if abs(spent - self.mark) >= 1.0:  # less where a child has gone
            self.mark, self.since = spent, now
        if spent > self.most:
            return f"more than {self.most:g} s of processor time are spent\n"
        return f"nobody has computed for {self.idle:g} s\n" if now - self.since > self.idle else ""


def _spent(pid: int) -> float:
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def start(command: Sequence[str], *, by: signal.Signals = signal.SIGKILL, **options: Any) -> subprocess.Popen[str]:
    """A process whose output is kept; it gets the signal ``by`` when this one ends."""
    leashed = [sys.executable, "-S", str(LEASH), str(os.getpid()), str(int(by)), *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(leashed, stdout=pipe, stderr=pipe, text=True, **options)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process says until its end, and its errors."""
    patience = Patience([process.pid])
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1)
        if why := patience.lost():
            tree = psutil.Process(process.pid)
            for each in (*tree.children(recursive=True), tree):
                each.kill()
            said, errors = process.communicate()
            raise AssertionError(f"{why}{said}\n{errors}")


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to its end, as :func:`start` and :func:`finish` do; like subprocess.run."""
    process = start(command, **options)
    said, errors = finish(process)
    return subprocess.CompletedProcess(command, process.returncode, said, errors)
