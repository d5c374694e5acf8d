"""The command line of the study."""

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from experiments.common import cli
from experiments.hypergradients.config import Config
from experiments.hypergradients.downstream import WAYS

DESCRIPTION = (
    "Compare FTP's one-step radius gradients with full ones through K steps, on the way of a real fine-tuning; then "
    "fine-tune with each of them. Stop it at any time; the same command goes on from there."
)


def parser() -> argparse.ArgumentParser:
    default = Config()
    made = argparse.ArgumentParser(
        prog="python -m experiments.hypergradients", description=DESCRIPTION, allow_abbrev=False
    )
    what = made.add_argument_group("what is compared")
    numbers = {"nargs": "+", "type": int, "metavar": "N"}
    what.add_argument(
        "--points",
        **numbers,
        default=default.points,
        help=cli.described("steps of the fine-tuning after which gradients are compared", default.points),
    )
    what.add_argument(
        "--depths",
        **numbers,
        default=default.depths,
        help=cli.described(
            "steps K that the full gradient goes back through; the last one is compared with", default.depths
        ),
    )
    what.add_argument(
        "--ways",
        nargs="*",
        choices=tuple(WAYS),
        default=default.ways,
        help=cli.described("of fine-tuning afterwards; none: only compare gradients", default.ways),
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=default.seeds,
        help=cli.described("of the fine-tunings afterwards; the first is also that of the run", default.seeds),
    )
    tuning = made.add_argument_group("fine-tuning, as in experiments.classification")
    cli.number(tuning, default, "epochs", "passes of the run on whose way gradients are compared")
    cli.number(tuning, default, "ways_epochs", "passes of the fine-tunings afterwards")
    cli.number(tuning, default, "lr", "first learning rate; it falls to 0 as a cosine")
    cli.number(tuning, default, "weight_decay", "decoupled, as in AdamW")
    cli.number(tuning, default, "batch_size", "examples in one step")
    cli.number(tuning, default, "radius_lr", "learning rate of the radii")
    cli.number(tuning, default, "validation", "share of the fine-tuning items held out")
    cli.number(tuning, default, "anchor_epochs", "passes of the anchor's training")
    tuning.add_argument("--limit", type=int, metavar="N", help="use only N items, for a quick try (default: all)")
    cli.add_run(made.add_argument_group("run"), "experiments.hypergradients")
    return made


def main(
    arguments: Sequence[str] | None = None,
    console: Console | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    return cli.run_study(parser().parse_args(arguments), Config, "experiments.hypergradients", console, on_step)
