"""The learning rate over a training, as a factor of the recipe's."""

import math

from experiments.recipes.recipe import Recipe


def factor(recipe: Recipe, steps: int, step: int) -> float:
    """At `step`, counted from 0, where an epoch has `steps`."""
    if recipe.warmup is None:
        return _cosine(step // steps, recipe.epochs)
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return _cosine(step - recipe.warmup, max(1, recipe.epochs * steps - recipe.warmup))


def _cosine(done: int, whole: int) -> float:
    return (1 + math.cos(math.pi * done / whole)) / 2
