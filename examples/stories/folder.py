"""Where a story leaves its figures, and how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path


def figures() -> Path:
    """The folder that the command names, made if it is not there."""
    if len(sys.argv) != 2:
        sys.exit(f"give a folder for the figures: python -m examples.stories.{Path(sys.argv[0]).stem} FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(story: Callable[[Path], object]) -> None:
    """Run a story and print the seconds of the clock."""
    folder, begin = figures(), time.perf_counter()
    story(folder)
    print(f"took {time.perf_counter() - begin:.0f} s")
