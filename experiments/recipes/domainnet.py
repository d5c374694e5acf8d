"""DomainNet: fine-tuned on photos, tested on photos and four other styles. Lists of files say what belongs where."""

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from experiments.recipes.examples import Benchmark, Examples, Stage, check_in_root, wrong
from experiments.recipes.recipe import Recipe

ID, OTHERS = "real", ("sketch", "painting", "infograph", "clipart")
LAYOUT = """\
├── real_train.txt            lines like: real/airplane/real_002_000001.jpg 1
├── real_train_10.txt         optional: the 10 % (or, as the authors name it, real_train_10_percent_split.txt)
├── real_test.txt
├── sketch_test.txt           and painting_test.txt, infograph_test.txt, clipart_test.txt
├── real/<class>/*.jpg
└── sketch/<class>/*.jpg      and painting/, infograph/, clipart/
"""


def read_list(root: Path, name: str, recipe: Recipe) -> Examples:
    """Pictures and classes from one list, each checked to be there and below the root."""
    file = root / name
    if not file.is_file():
        raise wrong(root, LAYOUT, f"there is no file {file}")
    check_in_root([file], root)
    files, labels, folders = [], [], set()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where, (picture, _, label) = f"{file}, line {number}", line.strip().rpartition(" ")
        path = PurePosixPath(picture)
        if not picture or not (label.isascii() and label.isdecimal()):
            raise wrong(root, LAYOUT, f"{where}: '{line}' is not a picture and the number of its class")
        if path.is_absolute() or ".." in path.parts or "\\" in picture:
            raise wrong(
                root, LAYOUT, f"{where}: '{picture}' must lie below --root; '..' and absolute paths are refused"
            )
        if int(label) >= recipe.classes:
            raise wrong(root, LAYOUT, f"{where}: class {label}, but there are {recipe.classes}, counted from 0")
        place = root / path
        if place.parent not in folders or place.is_symlink():  # as few resolved as will do: they are many
            check_in_root([place], root)
            folders.add(place.parent)
        if not place.is_file():
            raise wrong(root, LAYOUT, f"{where}: there is no picture {place}")
        files.append(str(path))
        labels.append(int(label))
    if not files:
        raise wrong(root, LAYOUT, f"{file} lists no picture")
    return Examples(root, tuple(files), tuple(labels))


def subset(examples: Examples, share: float, seed: int) -> Examples:
    """The same share of every class, at least one picture. `seed` and the class alone decide which."""
    members = defaultdict(list)
    for file, label in zip(examples.files, examples.targets, strict=True):
        members[label].append(file)
    kept = {
        file
        for label, files in members.items()
        for file in random.Random(f"{seed}-{label}").sample(sorted(files), max(1, round(share * len(files))))
    }
    rows = [row for row in zip(examples.files, examples.targets, strict=True) if row[0] in kept]
    return replace(examples, files=tuple(file for file, _ in rows), targets=tuple(label for _, label in rows))


def _class_names(root: Path, lists: dict[str, Examples]) -> None:
    """One number for each name of a class, and no class that is not trained on."""
    known: dict[str, int] = {}
    for name, examples in lists.items():
        for file, label in zip(examples.files, examples.targets, strict=True):
            title = PurePosixPath(file).parent.name
            if name != f"{ID}_train" and title not in known:
                raise wrong(root, LAYOUT, f"{name}.txt has the class '{title}' ({file}), which {ID}_train.txt lacks")
            if known.setdefault(title, int(label)) != label:
                raise wrong(
                    root, LAYOUT, f"{name}.txt: class '{title}' is {label} ({file}) and {known[title]} elsewhere"
                )


def domainnet(root: Path, recipe: Recipe) -> Benchmark:
    lists = {f"{ID}_train": read_list(root, f"{ID}_train.txt", recipe)}
    lists |= {f"{domain}_test": read_list(root, f"{domain}_test.txt", recipe) for domain in (ID, *OTHERS)}
    _class_names(root, lists)
    train = lists[f"{ID}_train"]
    if recipe.share < 1:
        percent = f"{100 * recipe.share:g}"
        names = (f"{ID}_train_{percent}.txt", f"{ID}_train_{percent}_percent_split.txt")
        given = next((name for name in names if (root / name).exists()), None)
        train = read_list(root, given, recipe) if given else subset(train, recipe.share, recipe.split_seed)
    tests = {domain: lists[f"{domain}_test"] for domain in (ID, *OTHERS)}
    columns = {f"ID: {ID}": (ID,), **{name: (name,) for name in OTHERS}, "OOD mean": OTHERS}
    return Benchmark("accuracy", (Stage(train, tests),), columns)
