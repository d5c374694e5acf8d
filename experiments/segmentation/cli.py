"""The command line of the study."""

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from experiments.common import cli
from experiments.segmentation.config import Config

DESCRIPTION = (
    "Fine-tune a pre-trained segmentation network on scenes of emoji in one style; test it in the other styles, and "
    "under fog, blur, noise and brightness: how much does each method keep of what the network knew? Stop it at any "
    "time; the same command goes on from there."
)


def parser() -> argparse.ArgumentParser:
    default = Config()
    made = cli.parser("experiments.segmentation", DESCRIPTION, default)
    data = made.add_argument_group("scenes")
    cli.number(data, default, "size", "height and width of a scene, in pixels")
    cli.number(data, default, "scenes", "scenes in an epoch of fine-tuning")
    cli.number(data, default, "pretrain_scenes", "scenes in an epoch of the anchor's training")
    cli.number(data, default, "validation_scenes", "scenes of held-out emoji that learning rates are chosen on")
    cli.number(data, default, "test_scenes", "scenes in each test set")
    data.add_argument("--limit", type=int, metavar="N", help="use only N emoji, for a quick try (default: all)")
    return made


def main(
    arguments: Sequence[str] | None = None,
    console: Console | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    return cli.run_study(parser().parse_args(arguments), Config, "experiments.segmentation", console, on_step)
