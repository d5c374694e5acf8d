"""From a recipe and a folder to the examples of its benchmark."""

from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.common.errors import InputError
from experiments.recipes.domainnet import domainnet
from experiments.recipes.examples import Benchmark
from experiments.recipes.imagenet import imagenet
from experiments.recipes.imagenet_r import continual
from experiments.recipes.pascal import human_parts, pascal, surface_normals
from experiments.recipes.recipe import Recipe

DATA: Mapping[str, Callable[[Path, Recipe, int], Benchmark]] = {
    "domainnet": domainnet,
    "imagenet": imagenet,
    "pascal": pascal,
    "human_parts": human_parts,
    "surface_normals": surface_normals,
    "continual": continual,
}


def find(root: Path, recipe: Recipe, seed: int = 0) -> Benchmark:
    """`seed` decides the order of ImageNet-R's classes."""
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that holds the data set of {recipe.name}")
    return DATA[recipe.data](root, recipe, seed)
