"""ImageNet with the test sets that share its classes, and ImageNet-R as a sequence of tasks."""

import random
from dataclasses import replace
from pathlib import Path

from experiments.recipes.examples import Benchmark, Examples, Stage, by_class, labelled, wrong
from experiments.recipes.recipe import Recipe

ID, OTHERS = "val", ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch")
LAYOUT = """\
├── train/<wnid>/*.JPEG              1000 folders: n01440764, ...
├── val/<wnid>/*.JPEG                the 50,000 validation pictures, sorted into folders
├── imagenetv2/<number>/*.jpeg       numbers 0 ... 999, in the order of the wnids
├── imagenet-a/<wnid>/*.jpg          200 of the wnids
├── imagenet-r/<wnid>/*.jpg          200 of the wnids
└── imagenet-sketch/<wnid>/*.JPEG
"""
CONTINUAL_LAYOUT = """\
└── imagenet-r/<wnid>/*.jpg          200 folders, as ImageNet-R is unpacked
"""
TEST_SHARE = 0.2  # of ImageNet-R, class by class


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
    return Benchmark("accuracy", (Stage(labelled(root, found, number), tests),), columns)


def task_classes(recipe: Recipe) -> list[tuple[int, ...]]:
    """Disjoint sets of classes of one size, in an order that `split_seed` decides."""
    order = list(range(recipe.classes))
    random.Random(f"{recipe.split_seed}-tasks").shuffle(order)
    size = recipe.classes // recipe.tasks
    return [tuple(sorted(order[start : start + size])) for start in range(0, recipe.classes, size)]


def continual(root: Path, recipe: Recipe) -> Benchmark:
    """Every stage trains on new classes and is tested on each set so far, among all classes so far."""
    found = by_class(root, "imagenet-r", CONTINUAL_LAYOUT)
    if len(found) != recipe.classes:
        raise wrong(
            root, CONTINUAL_LAYOUT, f"{root / 'imagenet-r'} has {len(found)} class folders, not {recipe.classes}"
        )
    train, test = {}, {}
    for wnid, files in found.items():
        if len(files) < 2:
            raise wrong(
                root, CONTINUAL_LAYOUT, f"{root / 'imagenet-r' / wnid} needs a picture to train on and one to test"
            )
        held = set(random.Random(f"{recipe.split_seed}-{wnid}").sample(files, max(1, round(TEST_SHARE * len(files)))))
        train[wnid], test[wnid] = [f for f in files if f not in held], sorted(held)
    number = {wnid: place for place, wnid in enumerate(sorted(found))}
    names, stages, seen, tests = sorted(found), [], set(), {}

    def of(part: dict[str, list[str]], classes: set[int]) -> Examples:
        return labelled(root, {names[label]: part[names[label]] for label in sorted(classes)}, number)

    for task, classes in enumerate(task_classes(recipe), 1):
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
    return Benchmark("accuracy", tuple(stages), {"all classes, at the end": ("all so far",)})
