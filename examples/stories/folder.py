"""Where a story leaves its figures."""

from __future__ import annotations

import sys
from pathlib import Path


def figures() -> Path:
    """The folder that the command names, made if it is not there."""
    if len(sys.argv) != 2:
        sys.exit(f"give a folder for the figures: python -m examples.stories.{Path(sys.argv[0]).stem} FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    return folder
