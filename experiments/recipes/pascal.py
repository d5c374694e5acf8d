"""Segmentation of PASCAL pictures, tested on the validation pictures as they are and corrupted."""

from dataclasses import replace
from pathlib import Path

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES
from experiments.recipes.examples import Benchmark, Examples, check_in_root, lines_of, wrong
from experiments.recipes.paper import Recipe
from experiments.recipes.scores import MIOU

LAYOUT = """\
├── ImageSets/{lists}/train.txt    and val.txt: one name a line, such as 2008_000002
├── JPEGImages/<name>.jpg
└── {masks}/<name>.png    one byte a pixel: the class, 0 ... {last}; 255 is not counted
"""


def _read(root: Path, part: str, lists: str, masks: str, layout: str) -> Examples:
    file = root / "ImageSets" / lists / f"{part}.txt"
    names = [line.strip() for _, line in lines_of(root, str(file.relative_to(root)), layout)]
    rows = [(f"JPEGImages/{name}.jpg", f"{masks}/{name}.png") for name in names]
    for name, row in zip(names, rows, strict=True):
        if "/" in name or "\\" in name:
            raise wrong(root, layout, f"{file}: '{name}' must be a name without folders")
        for path in row:
            if not (root / path).is_file():
                raise wrong(root, layout, f"{file} lists '{name}', but there is no file {root / path}")
    check_in_root([root / path for row in rows for path in row], root)
    return Examples(root, tuple(picture for picture, _ in rows), tuple(target for _, target in rows))


def _segmentation(root: Path, recipe: Recipe, lists: str, masks: str) -> Benchmark:
    """The validation pictures, clean and corrupted, are tested."""
    layout = LAYOUT.format(lists=lists, masks=masks, last=recipe.classes - 1)
    train, clean = (_read(root, part, lists, masks, layout) for part in ("train", "val"))
    kinds = {kind: tuple(f"{kind} {severity}" for severity in SEVERITIES) for kind in CORRUPTIONS}
    corrupted = {
        name: replace(clean, corruption=(kind, severity))
        for kind, names in kinds.items()
        for name, severity in zip(names, SEVERITIES, strict=True)
    }
    columns = {"ID: clean": ("clean",), **kinds, "OOD mean": tuple(corrupted)}
    return Benchmark(MIOU, train, {"clean": clean, **corrupted}, columns)


def pascal(root: Path, recipe: Recipe) -> Benchmark:
    return _segmentation(root, recipe, "Context", "semseg/pascal-context")


def human_parts(root: Path, recipe: Recipe) -> Benchmark:
    return _segmentation(root, recipe, "Parts", "human_parts")
