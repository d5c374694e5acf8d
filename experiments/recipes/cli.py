"""The command line of the recipes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.common.cli import RUNS, find_device, guarded
from experiments.common.errors import InputError
from experiments.recipes.methods import METHODS
from experiments.recipes.paper import RECIPES
from experiments.recipes.recipe import PERCENTS


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments.recipes",
        description="The benchmarks of the FTP paper, for data sets and pre-trained weights that are on this machine. "
        "Nothing is downloaded. Stop it at any time; the same command goes on from the last finished epoch.",
        allow_abbrev=False,
    )
    made.add_argument("name", nargs="?", metavar="NAME", help="the recipe; --list shows them")
    made.add_argument("--list", action="store_true", help="show the recipes and their hyperparameters")
    made.add_argument(
        "--root", type=Path, metavar="FOLDER", help="folder of the data set; a wrong one is told its layout"
    )
    made.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="pre-trained weights: a state_dict, or .safetensors"
    )
    made.add_argument(
        "--head", type=Path, metavar="FILE", help="zero-shot classifier, for the recipes of ImageNet: a tensor"
    )
    made.add_argument(
        "--method",
        dest="methods",
        nargs="+",
        choices=tuple(METHODS),
        default=tuple(METHODS),
        help="every weight within a learned radius of the anchor (ftp), free (finetune), only the head (linear); "
        "default: all",
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of head, order and augmentation (default: 0)")
    made.add_argument("--percent", type=int, choices=PERCENTS, help="of DomainNet's training pictures")
    made.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    made.add_argument("--batch-size", type=int, metavar="N", help="instead of the recipe's")
    made.add_argument("--workers", type=int, default=4, metavar="N", help="processes that read pictures (default: 4)")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps or auto, which is cuda where there is one")
    made.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/recipes/NAME-METHODS-seedN)"
    )
    return made


def show_recipes(console: Console) -> None:
    table = Table(
        "name", "network (timm)", "optimizer", "lr: ftp, plain", "epochs", "batch", "chosen here", title="Recipes"
    )
    for recipe in RECIPES.values():
        epochs = f"{recipe.tasks} x {recipe.epochs}" if recipe.tasks > 1 else str(recipe.epochs)
        rates = f"{recipe.lr:g}, {recipe.plain_lr:g}"
        row = (recipe.name, recipe.model, recipe.optimizer, rates, epochs, str(recipe.batch_size))
        table.add_row(*row, ", ".join(recipe.chosen))
    console.print(table)


def _run(parsed: argparse.Namespace, console: Console) -> None:
    if parsed.list:
        show_recipes(console)
        return
    if parsed.name not in RECIPES:
        raise InputError(f"recipe {parsed.name}: choose from {', '.join(RECIPES)}")
    for name in ("root", "checkpoint"):
        if getattr(parsed, name) is None:
            raise InputError(f"--{name} is needed: nothing is downloaded (see experiments/recipes/README.md)")
    given = {
        name: getattr(parsed, name) for name in ("epochs", "batch_size", "percent") if getattr(parsed, name) is not None
    }
    from experiments.recipes.run import Setting, run

    methods = tuple(parsed.methods)
    setting = Setting(
        root=parsed.root,
        checkpoint=parsed.checkpoint,
        head=parsed.head,
        out=parsed.out or RUNS / "recipes" / f"{parsed.name}-{'-'.join(methods)}-seed{parsed.seed}",
        methods=methods,
        seed=parsed.seed,
        device=find_device(parsed.device),
        workers=parsed.workers,
    )
    run(RECIPES[parsed.name].changed(**given), setting, console)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    parsed = parser().parse_args(arguments)
    return guarded(lambda: _run(parsed, console or Console()))
