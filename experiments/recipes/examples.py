"""Examples as lists of files: nothing is read before it is needed, since the data sets are larger than memory."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.common.errors import InputError
from experiments.common.pictures import SUFFIXES, check_inside


def check_in_root(paths: list[Path], root: Path) -> None:
    check_inside(paths, root, "--root")


@dataclass(frozen=True)
class Examples:
    root: Path
    files: tuple[str, ...]  # below the root
    targets: tuple[int, ...] | tuple[str, ...]  # the class, or the file of the mask
    classes: tuple[int, ...] | None = None  # the only classes that are asked for; None: all
    corruption: tuple[str, int] | None = None  # kind and severity


@dataclass(frozen=True)
class Benchmark:
    metric: str  # "accuracy" or "mIoU"
    train: Examples
    tests: Mapping[str, Examples]
    columns: Mapping[str, tuple[str, ...]]  # title to the tests whose mean it shows
    validation: Examples | None = None  # the epoch that is best on it is tested; None: the last one

    def counts(self) -> dict[str, int]:
        """Of pictures."""
        held_out = () if self.validation is None else self.validation.files
        return {"train": len(self.train.files), "validation": len(held_out)}

    def fingerprint(self) -> str:
        """A digest of names and targets; the pictures themselves are too many to be read for it."""
        digest = hashlib.sha256()
        held_out = () if self.validation is None else (("validation", self.validation),)
        for name, some in (("train", self.train), *held_out, *self.tests.items()):
            digest.update(repr((name, some.files, some.targets, some.classes, some.corruption)).encode())
        return digest.hexdigest()[:16]


def wrong(root: Path, layout: str, problem: str) -> InputError:
    """The first thing found wrong, and what was expected."""
    return InputError(f"{problem}\nexpected below --root {root}:\n{layout.rstrip()}")


def lines_of(root: Path, name: str, layout: str) -> list[tuple[str, str]]:
    """The lines of a list that are not blank, each with where it is."""
    file = root / name
    if not file.is_file():
        raise wrong(root, layout, f"there is no file {file}")
    check_in_root([file], root)
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    if not (found := [(f"{file}, line {number}", line.rstrip()) for number, line in lines if line.strip()]):
        raise wrong(root, layout, f"{file} lists no picture")
    return found


def folder(root: Path, name: str, layout: str) -> Path:
    place = root / name
    if not place.is_dir():
        raise wrong(root, layout, f"there is no folder {place}")
    check_in_root([place], root)
    return place


def names_in(place: Path, root: Path, *, folders: bool) -> list[str]:
    """Sorted names of the folders or pictures in a folder. Only links are resolved: there may be a million files."""
    with os.scandir(place) as entries:
        found = [
            entry
            for entry in entries
            if not entry.name.startswith(".")
            and (entry.is_dir() if folders else entry.is_file() and entry.name.lower().endswith(SUFFIXES))
        ]
    check_in_root([place / entry.name for entry in found if entry.is_symlink()], root)
    return sorted(entry.name for entry in found)


def by_class(root: Path, name: str, layout: str) -> dict[str, list[str]]:
    """Pictures below the root by the name of their class, from root/name/<class>/*."""
    place = folder(root, name, layout)
    found = {}
    for label in names_in(place, root, folders=True):
        files = names_in(place / label, root, folders=False)
        if not files:
            raise wrong(root, layout, f"class folder {place / label} holds no picture ({', '.join(SUFFIXES)})")
        found[label] = [f"{name}/{label}/{file}" for file in files]
    if not found:
        raise wrong(root, layout, f"{place} holds no class folders")
    return found


def labelled(root: Path, found: Mapping[str, list[str]], number: Mapping[str, int]) -> Examples:
    rows = [(file, number[name]) for name, files in found.items() for file in files]
    return Examples(root, tuple(file for file, _ in rows), tuple(label for _, label in rows))
