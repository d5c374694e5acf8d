"""Segmentation of PASCAL pictures, tested on the validation pictures as they are and corrupted."""

from dataclasses import replace
from pathlib import Path

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES
from experiments.recipes.examples import Benchmark, Examples, Stage, check_in_root, wrong
from experiments.recipes.recipe import Recipe

LAYOUT = """\
├── ImageSets/{lists}/train.txt    and val.txt: one name a line, such as 2008_000002
├── JPEGImages/<name>.jpg
└── {masks}/<name>.png    one byte a pixel: the class, 0 ... {last}; 255 is not counted
"""


def _read(root: Path, part: str, lists: str, masks: str, layout: str) -> Examples:
    file = root / "ImageSets" / lists / f"{part}.txt"
    if not file.is_file():
        raise wrong(root, layout, f"there is no file {file}")
    check_in_root([file], root)
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise wrong(root, layout, f"{file} lists no picture")
    rows = [(f"JPEGImages/{name}.jpg", f"{masks}/{name}.png") for name in names]
    for name, row in zip(names, rows, strict=True):
        if "/" in name or "\\" in name:
            raise wrong(root, layout, f"{file}: '{name}' must be a name without folders")
        for path in row:
            if not (root / path).is_file():
                raise wrong(root, layout, f"{file} lists '{name}', but there is no file {root / path}")
    check_in_root([root / path for row in rows for path in row], root)
    return Examples(root, tuple(picture for picture, _ in rows), tuple(mask for _, mask in rows))


def _benchmark(root: Path, recipe: Recipe, lists: str, masks: str) -> Benchmark:
    layout = LAYOUT.format(lists=lists, masks=masks, last=recipe.classes - 1)
    train, clean = (_read(root, part, lists, masks, layout) for part in ("train", "val"))
    columns = {kind: tuple(f"{kind} {severity}" for severity in SEVERITIES) for kind in CORRUPTIONS}
    corrupted = {
        f"{kind} {severity}": replace(clean, corruption=(kind, severity))
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    }
    return Benchmark(
        "mIoU",
        (Stage(train, {"clean": clean, **corrupted}),),
        {"ID: clean": ("clean",), **columns, "OOD mean": tuple(corrupted)},
    )


def pascal(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    return _benchmark(root, recipe, "Context", "semseg/pascal-context")


def human_parts(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    return _benchmark(root, recipe, "Parts", "human_parts")
