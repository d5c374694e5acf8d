"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import io
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from experiments.common.errors import InputError


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write beside `path`, force it to the disk, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _force(path.parent)


def save(path: Path, content: Any) -> None:
    """Save a structure of tensors and plain values."""
    # In memory first. torch's writer, left in the middle by Ctrl-C, goes on to write into what it was given: a file
    # would be closed by then, and that ends the process.
    whole = io.BytesIO()
    try:
        torch.save(content, whole)
    except RuntimeError as error:  # and it complains of its half file
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    write(path, lambda file: file.write(whole.getbuffer()))


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


def _prefix(path: Path) -> str:
    """How this machine's temporary files of `path` begin; the writer's process number and `.tmp` follow."""
    return f"{path.name}.{platform.node()}."


def _clear(path: Path) -> None:
    """Remove what killed writers left. Before the write, because it may be what fills the disk.

    Processes of other machines cannot be asked after, so their files stay.
    """
    for file in path.parent.iterdir():
        number = file.name.removeprefix(_prefix(path)).removesuffix(".tmp")
        if file.name == f"{_prefix(path)}{number}.tmp" and number.isdecimal() and not _runs(int(number)):
            file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 is not a question but kills
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _force(folder: Path) -> None:
    """Force a rename to the disk: it is in the folder, not in the file. Not every system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(handle)
