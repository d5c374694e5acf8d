"""ImageNet with the test sets that share its classes."""

from collections.abc import Mapping
from pathlib import Path

from experiments.recipes.examples import Benchmark, Examples, wrong
from experiments.recipes.paper import Recipe
from experiments.recipes.reading import SUFFIXES, check_inside

ID, OTHERS = "val", ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch")


def imagenet(root: Path, recipe: Recipe) -> Benchmark:
    found = _by_class(root, "train")
    if len(found) != recipe.classes:
        raise wrong(f"{root / 'train'} has {len(found)} class folders, not {recipe.classes}")
    number = {wnid: place for place, wnid in enumerate(sorted(found))}
    numbered = {str(place): place for place in range(len(number))}
    tests = {}
    for name in (ID, *OTHERS):
        own, known = _by_class(root, name), numbered if name == "imagenetv2" else number
        if unknown := sorted(own.keys() - known.keys()):
            raise wrong(f"class folder {root / name / unknown[0]} is none of the classes in train/")
        # -A and -R have 200 classes; the paper's figures take the largest logit among these
        present = tuple(sorted({known[label] for label in own}))
        tests[name] = _labelled(root, own, known, present if len(present) < recipe.classes else None)
    columns = {"ID: val": (ID,), **{name: (name,) for name in OTHERS}, "OOD mean": OTHERS}
    return Benchmark(_labelled(root, found, number), tests, columns)


def _by_class(root: Path, name: str) -> dict[str, list[str]]:
    """Pictures below the root by the name of their class, from root/name/<class>/*."""
    if not (root / name).is_dir():
        raise wrong(f"there is no folder {root / name}")
    check_inside([root / name], root)
    found = {}
    for folder in sorted(path for path in (root / name).iterdir() if path.is_dir()):
        check_inside([folder], root)
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        check_inside([path for path in files if path.is_symlink()], root)  # there may be a million files
        if not files:
            raise wrong(f"class folder {folder} holds no picture ({', '.join(SUFFIXES)})")
        found[folder.name] = [f"{name}/{folder.name}/{path.name}" for path in files]
    return found


def _labelled(
    root: Path, found: Mapping[str, list[str]], number: Mapping[str, int], classes: tuple[int, ...] | None = None
) -> Examples:
    rows = [(file, number[name]) for name, files in found.items() for file in files]
    return Examples(root, tuple(file for file, _ in rows), tuple(label for _, label in rows), classes)
