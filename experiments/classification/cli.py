"""The command line of the study."""

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from experiments.classification.config import Config
from experiments.common import cli

DESCRIPTION = (
    "Fine-tune a pre-trained network on one style of pictures and test it in others: how much does each method keep of "
    "what the network knew? Without options this is the demo: emoji in three styles, AdamW against FTPAdamW and a "
    "linear probe, about six minutes on two CPU cores. Stop it at any time; the same command goes on from there."
)


def parser() -> argparse.ArgumentParser:
    made = cli.parser("experiments.classification", DESCRIPTION, Config())
    data = made.add_argument_group("pictures")
    data.add_argument(
        "--data-root",
        metavar="FOLDER",
        help="pictures of your own, root/<domain>/<class>/*.png (or jpg, webp, bmp, gif), instead of the emoji; files "
        "of one class with the same stem are one item, and all of an item is in one part of the split",
    )
    data.add_argument(
        "--id-domain",
        metavar="NAME",
        help="domain to fine-tune on, with --data-root (default: the first in the alphabet)",
    )
    data.add_argument("--limit", type=int, metavar="N", help="use only N items, for a quick try (default: all)")
    return made


def main(
    arguments: Sequence[str] | None = None,
    console: Console | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    return cli.run_study(parser().parse_args(arguments), Config, "experiments.classification", console, on_step)
