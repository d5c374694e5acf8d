"""DomainNet: fine-tuned on photos, tested on photos and four other styles. Lists of files say what belongs where."""

from pathlib import Path, PurePosixPath

from experiments.recipes.examples import Benchmark, Examples, wrong
from experiments.recipes.paper import Recipe
from experiments.recipes.reading import check_inside

ID, OTHERS = "real", ("sketch", "painting", "infograph", "clipart")


def domainnet(root: Path, recipe: Recipe) -> Benchmark:
    train, held_out = (f"{ID}_{part}_{recipe.percent}_percent_split.txt" for part in ("train", "val"))
    tests = {domain: f"{domain}_test.txt" for domain in (ID, *OTHERS)}
    lists = {name: _read(root, name, recipe.classes) for name in (train, held_out, *tests.values())}
    known: dict[str, int] = {}
    for name, examples in lists.items():
        for file, label in zip(examples.files, examples.targets, strict=True):
            title = PurePosixPath(file).parent.name
            if known.setdefault(title, label) != label:
                raise wrong(f"{name}: class '{title}' is {label} ({file}) and {known[title]} elsewhere")
    if unknown := sorted(known.keys() - {PurePosixPath(file).parent.name for file in lists[train].files}):
        raise wrong(f"the class '{unknown[0]}' is tested, but {train} lacks it")
    if both := set(lists[train].files) & set(lists[held_out].files):
        raise wrong(f"{min(both)} is both in {train} and in {held_out}")
    columns = {f"ID: {ID}": (ID,), **{name: (name,) for name in OTHERS}, "OOD mean": OTHERS}
    return Benchmark(lists[train], {domain: lists[name] for domain, name in tests.items()}, columns, lists[held_out])


def _read(root: Path, name: str, classes: int) -> Examples:
    """Pictures and classes from one list, each checked to be there and below the root."""
    if not (root / name).is_file():
        raise wrong(f"there is no file {root / name}")
    check_inside([root / name], root)
    files, labels, folders = [], [], set()
    for number, line in enumerate((root / name).read_text(encoding="utf-8").splitlines(), 1):
        picture, _, label = line.strip().rpartition(" ")
        if not picture or not (label.isascii() and label.isdecimal()) or int(label) >= classes:
            raise wrong(
                f"{root / name}, line {number}: '{line}' is not a picture and its class, from 0 to {classes - 1}"
            )
        place = root / picture
        if place.parent not in folders or place.is_symlink():  # as few resolved as will do: they are many
            check_inside([place], root)
            folders.add(place.parent)
        if not place.is_file():
            raise wrong(f"{root / name}, line {number}: there is no picture {place}")
        files.append(picture)
        labels.append(int(label))
    return Examples(root, tuple(files), tuple(labels))
