"""Segmentation and normals of PASCAL pictures, tested on the validation pictures as they are and corrupted."""

from dataclasses import replace
from pathlib import Path

from experiments.common.corruptions import CORRUPTIONS, SEVERITIES
from experiments.recipes.examples import Benchmark, Examples, Stage, check_in_root, lines_of, wrong
from experiments.recipes.normals import ENCODING
from experiments.recipes.paper import Recipe
from experiments.recipes.pictures import Pictures
from experiments.recipes.scores import MEAN_ERROR, MIOU, NORMALS

LAYOUT = """\
├── ImageSets/{lists}/train.txt    and val.txt: one name a line, such as 2008_000002
├── JPEGImages/<name>.jpg
└── {targets}/<name>.png    {about}
"""
CLASSES = "one byte a pixel: the class, 0 ... {last}; 255 is not counted"
NORMALS_FOLDER = "normals_masked"  # not normals_distill, whose mask lies in other files
MASKED = f"RGB: {ENCODING}. Made of normals_distill/, see the README"


def _read(root: Path, part: str, lists: str, targets: str, layout: str) -> Examples:
    file = root / "ImageSets" / lists / f"{part}.txt"
    names = [line.strip() for _, line in lines_of(root, str(file.relative_to(root)), layout)]
    rows = [(f"JPEGImages/{name}.jpg", f"{targets}/{name}.png") for name in names]
    for name, row in zip(names, rows, strict=True):
        if "/" in name or "\\" in name:
            raise wrong(root, layout, f"{file}: '{name}' must be a name without folders")
        for path in row:
            if not (root / path).is_file():
                raise wrong(root, layout, f"{file} lists '{name}', but there is no file {root / path}")
    check_in_root([root / path for row in rows for path in row], root)
    return Examples(root, tuple(picture for picture, _ in rows), tuple(target for _, target in rows))


def _segmentation(root: Path, recipe: Recipe, lists: str, masks: str) -> Benchmark:
    layout = LAYOUT.format(lists=lists, targets=masks, about=CLASSES.format(last=recipe.classes - 1))
    train, clean = (_read(root, part, lists, masks, layout) for part in ("train", "val"))
    return _benchmark(MIOU, train, clean)


def _benchmark(metric: str, train: Examples, clean: Examples, errors: tuple[str, ...] = ()) -> Benchmark:
    columns = {kind: tuple(f"{kind} {severity}" for severity in SEVERITIES) for kind in CORRUPTIONS}
    corrupted = {
        f"{kind} {severity}": replace(clean, corruption=(kind, severity))
        for kind in CORRUPTIONS
        for severity in SEVERITIES
    }
    return Benchmark(
        metric,
        (Stage(train, {"clean": clean, **corrupted}),),
        {"ID: clean": ("clean",), **columns, "OOD mean": tuple(corrupted)},
        errors,
    )


def pascal(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    return _segmentation(root, recipe, "Context", "semseg/pascal-context")


def human_parts(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    return _segmentation(root, recipe, "Parts", "human_parts")


def surface_normals(root: Path, recipe: Recipe, seed: int) -> Benchmark:
    """A picture may have no normal anywhere, but not all of a list: there would be nothing to learn or to test."""
    layout = LAYOUT.format(lists="Context", targets=NORMALS_FOLDER, about=MASKED)
    lists = {}
    for part in ("train", "val"):
        examples = replace(_read(root, part, "Context", NORMALS_FOLDER, layout), normals=True)
        pictures = Pictures(examples, recipe, seed=None)
        if not any(pictures[number][1].any() for number in range(len(pictures))):  # the first has, as a rule
            raise wrong(root, layout, f"no picture of {part}.txt has a pixel with a normal in {root / NORMALS_FOLDER}")
        lists[part] = examples
    return _benchmark(NORMALS, lists["train"], lists["val"], errors=(MEAN_ERROR,))
