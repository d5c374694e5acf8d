"""What the trainings that are killed have in common: options, checkpoints that are slow to write, and their ends."""

import argparse
import io
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.common import checkpoint

CHECKPOINT, END = "checkpoint.pt", "end.pt"


class Program(NamedTuple):
    """How a training is started, and what it has beside the options of `new_parser`."""

    module: str
    options: dict[str, str]
    steps: int
    every: int
    longest: float  # seconds from a start to its kill; a whole run takes longer


def new_parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=0, help="steps between checkpoints; 0: none at all")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each piece of a checkpoint")
    return parser


class Slow(io.RawIOBase):
    """A file that pauses after each piece it is given: a kill then often finds it half written."""

    def __init__(self, file: Any, pause: float) -> None:
        self.file, self.pause = file, pause

    def write(self, piece: Any) -> int:
        self.file.write(piece)
        self.file.flush()
        time.sleep(self.pause)
        return len(piece)


def save(folder: Path, content: Any, pause: float) -> None:
    file = folder / CHECKPOINT
    if pause:
        checkpoint.write(file, lambda opened: torch.save(content, Slow(opened, pause)))
    else:
        checkpoint.save(file, content)


def load(folder: Path) -> Any:
    """What `save` wrote last; `None`: nothing yet."""
    file = folder / CHECKPOINT
    return checkpoint.load(file) if file.exists() else None


def ready(step: int) -> None:
    """Tell the driver that the checkpoint is read."""
    print("ready", step, flush=True)


def finish(folder: Path, parts: dict[str, Any]) -> None:
    """Leave where the training ended, by parts."""
    checkpoint.save(folder / END, parts)
