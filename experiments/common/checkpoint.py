"""Files that are either whole or absent, whatever happens while they are written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from experiments.common.errors import InputError


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write beside `path`, force it to the disk, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: Any) -> None:
    """Save a structure of tensors and plain values."""
    write(path, lambda file: torch.save(content, file))


def load(path: Path) -> Any:
    """Load what `save` wrote, on the CPU, without running code from the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch reports a damaged file by several unrelated types
        raise InputError(f"{path} is damaged ({type(error).__name__}); delete it and run again") from error


def write_text(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))
