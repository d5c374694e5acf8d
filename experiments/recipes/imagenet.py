"""ImageNet with the test sets that share its classes."""

from dataclasses import replace
from pathlib import Path

from experiments.recipes.examples import Benchmark, by_class, labelled, wrong
from experiments.recipes.paper import Recipe

ID, OTHERS = "val", ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch")
LAYOUT = """\
├── train/<wnid>/*.JPEG              1000 folders: n01440764, ...
├── val/<wnid>/*.JPEG                the 50,000 validation pictures, sorted into folders
├── imagenetv2/<number>/*.jpeg       numbers 0 ... 999, in the order of the wnids
├── imagenet-a/<wnid>/*.jpg          200 of the wnids
├── imagenet-r/<wnid>/*.jpg          200 of the wnids
└── imagenet-sketch/<wnid>/*.JPEG
"""


def imagenet(root: Path, recipe: Recipe) -> Benchmark:
    found = by_class(root, "train", LAYOUT)
    if len(found) != recipe.classes:
        raise wrong(root, LAYOUT, f"{root / 'train'} has {len(found)} class folders, not {recipe.classes}")
    number = {wnid: place for place, wnid in enumerate(sorted(found))}
    numbered = {str(place): place for place in range(len(number))}
    tests = {}
    for name in (ID, *OTHERS):
        own, known = by_class(root, name, LAYOUT), numbered if name == "imagenetv2" else number
        if unknown := sorted(own.keys() - known.keys()):
            raise wrong(root, LAYOUT, f"class folder {root / name / unknown[0]} is none of the classes in train/")
        examples = labelled(root, own, known)
        # -A and -R have 200 classes; the paper's figures take the largest logit among these
        present = tuple(sorted({known[label] for label in own}))
        tests[name] = replace(examples, classes=present if len(present) < recipe.classes else None)
    columns = {"ID: val": (ID,), **{name: (name,) for name in OTHERS}, "OOD mean": OTHERS}
    return Benchmark("accuracy", labelled(root, found, number), tests, columns)
