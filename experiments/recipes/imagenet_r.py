"""ImageNet-R as a sequence of tasks, by the lists of CODA-Prompt."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from experiments.recipes.examples import Benchmark, Examples, Stage, check_in_root, folder, lines_of, wrong
from experiments.recipes.paper import Recipe

FOLDER = "imagenet-r"
LAYOUT = """\
├── imagenet-r_train.yaml         both from GT-RIPL/CODA-Prompt, dataloaders/splits: 24,000 pictures under `data:`
├── imagenet-r_test.yaml          and their classes under `targets:`; 6,000 here
└── imagenet-r/<wnid>/*.jpg       200 folders, as ImageNet-R is unpacked
"""
Rows = list[tuple[str, int]]  # picture below the root, class


def task_classes(recipe: Recipe, seed: int) -> list[tuple[int, ...]]:
    """Disjoint sets of classes of one size: in the order of their numbers for seed 0, else shuffled by the seed."""
    order = list(range(recipe.classes))
    if seed > 0:  # as in CODA-Prompt, with Python's own generator
        random.Random(seed).shuffle(order)
    size = recipe.classes // recipe.tasks
    return [tuple(sorted(order[start : start + size])) for start in range(0, recipe.classes, size)]


def read_list(root: Path, part: str, recipe: Recipe) -> Rows:
    """The lists were made where pictures lay in two folders, so the last two parts of a path say which it is."""
    name = f"imagenet-r_{part}.yaml"
    file = root / name
    found: dict[str, list[str]] = {"data": [], "targets": []}
    open_list = None
    for where, line in lines_of(root, name, LAYOUT):
        if line in ("data:", "targets:"):
            open_list = found[line.removesuffix(":")]
        elif line.startswith("- ") and open_list is not None:
            open_list.append(line.removeprefix("- ").strip())
        else:
            raise wrong(root, LAYOUT, f"{where}: '{line}' is neither 'data:', 'targets:' nor '- ...'")
    pictures, classes = found["data"], found["targets"]
    if not pictures or len(pictures) != len(classes):
        raise wrong(root, LAYOUT, f"{file} has {len(pictures)} pictures and {len(classes)} classes for them")
    rows = zip(pictures, classes, strict=True)
    return [(_picture(root, file, listed), _class(root, file, label, recipe)) for listed, label in rows]


def _picture(root: Path, file: Path, listed: str) -> str:
    wnid, name = PurePosixPath(listed).parts[-2:] if "/" in listed else ("", listed)
    if not wnid or ".." in (wnid, name) or "\\" in listed:
        raise wrong(root, LAYOUT, f"{file}: '{listed}' does not end in a class folder and the name of a picture")
    place = root / FOLDER / wnid / name
    if not place.is_file():
        raise wrong(root, LAYOUT, f"{file} lists '{listed}', but there is no picture {place}")
    return f"{FOLDER}/{wnid}/{name}"


def _class(root: Path, file: Path, label: str, recipe: Recipe) -> int:
    if not (label.isascii() and label.isdecimal()) or int(label) >= recipe.classes:
        raise wrong(root, LAYOUT, f"{file}: the class '{label}' is none of 0 ... {recipe.classes - 1}")
    return int(label)


def _check(root: Path, train: Rows, test: Rows, recipe: Recipe) -> None:
    """Nothing outside of the root, no picture twice, and the same classes by the same folders in both lists."""
    files = [file for file, _ in (*train, *test)]
    places = {root / file for file in files}
    check_in_root([*{place.parent for place in places}, *(place for place in places if place.is_symlink())], root)
    (often, times), *_ = Counter(files).most_common(1)
    if times > 1:
        raise wrong(root, LAYOUT, f"{often} is listed {times} times")
    pairs = {(PurePosixPath(file).parent.name, label) for file, label in (*train, *test)}
    if not len(pairs) == len({wnid for wnid, _ in pairs}) == len({label for _, label in pairs}):
        raise wrong(root, LAYOUT, "a class folder has two numbers in the lists, or a number two folders")
    for part, rows in (("train", train), ("test", test)):
        if (count := len({label for _, label in rows})) != recipe.classes:
            raise wrong(root, LAYOUT, f"imagenet-r_{part}.yaml has pictures of {count} classes, not {recipe.classes}")


def continual(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    """Every stage trains on new classes and is tested on each set so far, among all classes so far."""
    folder(root, FOLDER, LAYOUT)
    train, test = (read_list(root, part, recipe) for part in ("train", "test"))
    _check(root, train, test, recipe)

    def of(rows: Rows, classes: set[int]) -> Examples:
        some = [row for row in rows if row[1] in classes]
        return Examples(root, tuple(file for file, _ in some), tuple(label for _, label in some))

    stages, seen, tests = [], set(), {}
    for task, classes in enumerate(task_classes(recipe, seed), 1):
        seen |= set(classes)
        tests[f"task {task}"] = of(test, set(classes))
        everything = {**tests, "all so far": of(test, seen)}
        known = tuple(sorted(seen))
        stages.append(
            Stage(
                replace(of(train, set(classes)), classes=classes),
                {name: replace(some, classes=known) for name, some in everything.items()},
            )
        )
    columns = {"all classes, at the end": ("all so far",), "mean of the tasks, at the end": tuple(tests)}
    return Benchmark("accuracy", tuple(stages), columns)
