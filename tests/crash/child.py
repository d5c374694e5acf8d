"""What the trainings that are killed have in common: options, checkpoints that are slow to write, and their ends."""

import argparse
import hashlib
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.common import checkpoint

CHECKPOINT, DIGESTS = "checkpoint.pt", "digests.json"


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


def finish(folder: Path, parts: Mapping[str, Any]) -> None:
    """Leave where the training ended, as a digest of each part."""
    digests = {name: digest(part) for name, part in parts.items()}
    checkpoint.write_text(folder / DIGESTS, json.dumps(digests, indent=1) + "\n")


def digest(tree: Any) -> str:
    """SHA-256 of every bit of a structure of tensors and plain values."""
    found = hashlib.sha256()

    def take(x: Any) -> None:
        if isinstance(x, Tensor):
            found.update(f"{x.dtype}{tuple(x.shape)}".encode())
            found.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for key in sorted(x, key=str):
                found.update(f"{key!r}:".encode())
                take(x[key])
        elif isinstance(x, (list, tuple)):
            found.update(f"{type(x).__name__}{len(x)}".encode())
            for value in x:
                take(value)
        else:
            found.update(repr(x).encode())

    take(tree)
    return found.hexdigest()
