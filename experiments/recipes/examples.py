"""Pictures as lists of files: nothing is read before it is needed, since the data sets are larger than memory."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.common.errors import InputError


@dataclass(frozen=True)
class Examples:
    root: Path
    files: tuple[str, ...]  # below the root
    targets: tuple[int, ...]  # classes
    classes: tuple[int, ...] | None = None  # the only ones that are asked for; None: all


@dataclass(frozen=True)
class Benchmark:
    train: Examples
    tests: Mapping[str, Examples]
    columns: Mapping[str, tuple[str, ...]]  # title to the tests whose mean it shows
    validation: Examples | None = None  # the epoch that is best on it is tested; None: the last one

    def fingerprint(self) -> str:
        """A digest of names and targets; the pictures themselves are too many to be read for it."""
        parts = {"train": self.train, "validation": self.validation, **self.tests}
        about = [(name, part.files, part.targets, part.classes) for name, part in parts.items() if part is not None]
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def wrong(problem: str) -> InputError:
    return InputError(f"{problem}; the layout of the data is in experiments/recipes/README.md")
