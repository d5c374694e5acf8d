"""Kills a training again and again, and compares where it ends with the run that nobody disturbed."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from experiments.common import checkpoint
from tests.crash.child import CHECKPOINT, END, Program
from tests.support.compare import same
from tests.support.processes import start

ROOT = Path(__file__).parents[2]
PAUSE = 2e-4  # after each of some 400 pieces of a checkpoint, which then takes 0.1 s instead of 0.005


@dataclass
class Outcome:
    kills: int = 0
    in_write: int = 0  # of these, while a file was being written
    resumed: list[int] = field(default_factory=list)  # the step at which each restart went on
    ends: int = 0  # of runs that were killed at least once
    equal: int = 0  # of these ends, the bit-equal ones
    wrong: set[str] = field(default_factory=set)  # what differed, files that were left over


class Child:
    """A process that trains in `folder`, up to the moment when it has read what is on the disk."""

    def __init__(self, folder: Path, program: Program, every: int, pause: float = 0.0) -> None:
        self.folder, self.longest = folder, program.longest
        options = {"dir": folder, "steps": program.steps, "every": every, "pause": pause, **program.options}
        command = [sys.executable, "-m", program.module, *(f"--{name}={value}" for name, value in options.items())]
        self.process = start(command, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.end()
            raise RuntimeError("the training ended before it was ready")
        self.step = int(line.removeprefix("ready "))

    def writes(self) -> bool:
        """Whether it is writing a file; once it is dead, whether it was."""
        return any(self.folder.glob(f"*.{self.process.pid}.tmp"))

    def kill(self, after: float, in_write: bool) -> bool:
        """Kill it after some seconds, `in_write` at the next moment when it writes over a checkpoint, however slow the
        machine is; False: it had ended before."""
        try:
            self.process.wait(after)
        except subprocess.TimeoutExpired:
            there = self.folder / CHECKPOINT
            while in_write and self.process.poll() is None and not (there.exists() and self.writes()):
                time.sleep(0.001)
            self.process.kill()
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for its end and return the status, 0 or that of a kill."""
        _, errors = self.process.communicate()
        status = self.process.returncode
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the training ended with status {status}:\n{errors}")
        return status


def disturb(outcome: Outcome, kills: int, start: Callable[[float], Child], rng: random.Random) -> bool:
    """A run to its end, killed and restarted until `outcome` has `kills` of them; whether any met it."""
    before = outcome.kills
    while True:
        in_write = outcome.kills % 2 == 0 and outcome.kills < kills
        child = start(PAUSE if in_write else 0.0)
        if outcome.kills > before:
            outcome.resumed.append(child.step)
        if outcome.kills == kills:
            child.end()
        elif child.kill(rng.uniform(0, child.longest), in_write):
            outcome.kills += 1
            outcome.in_write += child.writes()
            continue
        return outcome.kills > before


def crash(program: Program, kills: int, folder: Path, rng: random.Random) -> Outcome:
    """Runs of one training until `kills` kills have met them, every second one at a write."""
    undisturbed = folder / "undisturbed"  # by checkpoints either
    Child(undisturbed, program, every=0).end()
    expected = checkpoint.load(undisturbed / END)
    outcome = Outcome()
    for number in range(2 * kills):  # a fast machine needs more than one run
        here = folder / str(number)
        if outcome.kills < kills and disturb(outcome, kills, partial(Child, here, program, program.every), rng):
            found = checkpoint.load(here / END)
            different = {name for name in expected if not same(found.get(name), expected[name])}
            outcome.ends += 1
            outcome.equal += not different
            outcome.wrong |= different | {file.name for file in here.iterdir()} - {CHECKPOINT, END}
    if not any(outcome.resumed):
        outcome.wrong.add("no checkpoint was read")
    if outcome.kills < kills:
        raise RuntimeError(f"{2 * kills} runs ended before {kills} kills met them: too few steps")
    return outcome
