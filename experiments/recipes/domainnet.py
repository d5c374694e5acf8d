"""DomainNet: fine-tuned on photos, tested on photos and four other styles. Lists of files say what belongs where."""

from pathlib import Path, PurePosixPath

from experiments.recipes.examples import Benchmark, Examples, check_in_root, lines_of, wrong
from experiments.recipes.paper import Recipe

ID, OTHERS = "real", ("sketch", "painting", "infograph", "clipart")
LAYOUT = """\
├── {train:<36}from GT-RIPL/FTP, datasets/domainnet{alias}
├── {held_out:<36}likewise; lines like: real/airplane/real_002_000001.jpg 1
├── real_test.txt                       DomainNet's own, like the next
├── sketch_test.txt                     and painting_test.txt, infograph_test.txt, clipart_test.txt
├── real/<class>/*.jpg
└── sketch/<class>/*.jpg                and painting/, infograph/, clipart/
"""
ALIAS = " (or, as it is called there, real_train_split.txt)"


def layout(recipe: Recipe) -> str:
    train, held_out = (numbered(part, recipe.percent) for part in ("train", "val"))
    return LAYOUT.format(train=train, held_out=held_out, alias=ALIAS if recipe.percent == 100 else "")


def numbered(part: str, percent: int) -> str:
    return f"{ID}_{part}_{percent}_percent_split.txt"


def read_list(root: Path, name: str, recipe: Recipe) -> Examples:
    """Pictures and classes from one list, each checked to be there and below the root."""
    expected = layout(recipe)
    files, labels, folders = [], [], set()
    for where, line in lines_of(root, name, expected):
        picture, _, label = line.strip().rpartition(" ")
        path = PurePosixPath(picture)
        if not picture or not (label.isascii() and label.isdecimal()):
            raise wrong(root, expected, f"{where}: '{line}' is not a picture and the number of its class")
        if path.is_absolute() or ".." in path.parts or "\\" in picture:
            raise wrong(
                root, expected, f"{where}: '{picture}' must lie below --root; '..' and absolute paths are refused"
            )
        if int(label) >= recipe.classes:
            raise wrong(root, expected, f"{where}: class {label}, but there are {recipe.classes}, counted from 0")
        place = root / path
        if place.parent not in folders or place.is_symlink():  # as few resolved as will do: they are many
            check_in_root([place], root)
            folders.add(place.parent)
        if not place.is_file():
            raise wrong(root, expected, f"{where}: there is no picture {place}")
        files.append(str(path))
        labels.append(int(label))
    return Examples(root, tuple(files), tuple(labels))


def split_list(root: Path, part: str, percent: int) -> str:
    """The name of a list of photos, as the authors' loader asks for it or, for 100 %, as their repository has it."""
    name, unnumbered = numbered(part, percent), f"{ID}_{part}_split.txt"
    there = percent == 100 and not (root / name).exists() and (root / unnumbered).exists()
    return unnumbered if there else name


def _class_names(lists: dict[str, Examples], recipe: Recipe, root: Path) -> None:
    """One number for each name of a class, and no class that is not trained on. The first list is of training."""
    known: dict[str, int] = {}
    first = next(iter(lists))
    for name, examples in lists.items():
        for file, label in zip(examples.files, examples.targets, strict=True):
            title = PurePosixPath(file).parent.name
            if name != first and title not in known:
                raise wrong(root, layout(recipe), f"{name} has the class '{title}' ({file}), which {first} lacks")
            if known.setdefault(title, int(label)) != label:
                raise wrong(
                    root, layout(recipe), f"{name}: class '{title}' is {label} ({file}) and {known[title]} elsewhere"
                )


def domainnet(root: Path, recipe: Recipe) -> Benchmark:
    train, held_out = (split_list(root, part, recipe.percent) for part in ("train", "val"))
    tests = {domain: f"{domain}_test.txt" for domain in (ID, *OTHERS)}
    lists = {name: read_list(root, name, recipe) for name in (train, held_out, *tests.values())}
    _class_names(lists, recipe, root)
    if both := set(lists[train].files) & set(lists[held_out].files):
        raise wrong(root, layout(recipe), f"{min(both)} is both in {train} and in {held_out}")
    columns = {f"ID: {ID}": (ID,), **{name: (name,) for name in OTHERS}, "OOD mean": OTHERS}
    found = {domain: lists[name] for domain, name in tests.items()}
    return Benchmark("accuracy", lists[train], found, columns, lists[held_out])
