"""The recipes on tiny data: what makes the data, what makes a recipe fit them, and a whole run."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from experiments.common.trainer import OnStep
from experiments.recipes.paper import RECIPES, Recipe
from experiments.recipes.study import STUDY, Config

from . import tiny_datasets as tiny

RESNET = {"model": "test_resnet", "image_size": 32, "resize": 36, "fixed_size": False}
VIT = {"model": "test_vit", "image_size": 32, "resize": 36, "fixed_size": True}
# How to make the data of a recipe, and what makes the recipe fit them.
DATA = {"domainnet": (tiny.domainnet, {"classes": 3}), "imagenet": (tiny.imagenet, {"classes": 4})}


def small(name: str, **changes) -> Recipe:
    """A recipe that fits the tiny data."""
    recipe = RECIPES[name]
    network = VIT if "vit" in recipe.model else RESNET
    sizes: dict[str, Any] = {"epochs": 1, "batch_size": 4, "projection": tiny.FEATURES if recipe.projection else 0}
    return replace(recipe, **{**network, **DATA[recipe.data][1], **sizes, **changes})


class Given(NamedTuple):
    """A run: options, folder, and the recipe that stands for that of the options' name."""

    recipe: Recipe
    config: Config
    out: Path

    @property
    def checkpoint(self) -> Path:
        return Path(self.config.checkpoint or "")


def prepare(recipe: Recipe, folder: Path, **options) -> Given:
    """Data and weights of a run."""
    DATA[recipe.data][0](folder / "data")
    sizes = {"img_size": recipe.image_size} if recipe.fixed_size else {}
    file = tiny.weights(folder / "weights.pt", recipe.model, **sizes)
    head = str(tiny.head(folder / "head.pt", recipe.classes)) if recipe.zero_shot else None
    config = Config(recipe.name, str(folder / "data"), str(file), head, workers=0)
    return Given(recipe, replace(config, **options), folder / "run")


def run(given: Given, text: StringIO | None = None, on_step: OnStep | None = None) -> None:
    """The command of the recipe, without its arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "recipe", lambda config: given.recipe)
        console = Console(file=text or StringIO(), width=250)
        STUDY.run(given.config, given.out, given.out.parent / "cache", console, on_step=on_step)


def finished(given: Given) -> dict:
    """What a run to its end has measured; its table shows all columns, and nothing diverged."""
    text = StringIO()
    run(given, text)
    content = json.loads((given.out / "metrics.json").read_text())
    assert content["status"] == "finished"
    for result in content["results"].values():
        assert all(title in text.getvalue() for title in result["columns"])
        assert not result["diverged"]
    return content
