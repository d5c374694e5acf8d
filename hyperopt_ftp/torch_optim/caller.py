"""Where a warning belongs: the line of whoever called, however many functions of torch lie between."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

__all__ = ["callers_level"]

#: Folders whose lines are nobody's own: torch puts hooks, contexts and schedulers around a step.
INSIDE = tuple(f"{Path(path).resolve()}{os.sep}" for path in (Path(__file__).parents[1], Path(torch.__file__).parent))


def callers_level() -> int:
    """``stacklevel`` of the first line that is neither of this package nor of torch, for a warning of the function
    that calls this one."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    return level
