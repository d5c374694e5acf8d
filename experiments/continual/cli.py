"""The command line of the study."""

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from experiments.classification.emoji import STYLES
from experiments.common import cli
from experiments.continual.config import Config
from experiments.continual.methods import METHODS

PROG = "experiments.continual"
DESCRIPTION = (
    "Learn the emoji in one style after the other and test in all of them after each: how much of the earlier styles "
    "does each method forget, and should FTP's anchor move on with the tasks? Stop it at any time; the same command "
    "goes on from there."
)


def parser() -> argparse.ArgumentParser:
    default = Config()
    made = argparse.ArgumentParser(prog=f"python -m {PROG}", description=DESCRIPTION, allow_abbrev=False)
    what = made.add_argument_group("what is compared")
    what.add_argument(
        "--method",
        dest="methods",
        nargs="+",
        choices=tuple(METHODS),
        default=default.methods,
        help=cli.described("; ".join(f"{name}: {method.about}" for name, method in METHODS.items()), default.methods),
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=default.seeds,
        help=cli.described("one sequence of tasks for each", default.seeds),
    )
    what.add_argument(
        "--order",
        nargs="+",
        choices=STYLES,
        default=default.order,
        help=f"the styles as they are learnt, each once (default: {', '.join(default.order)})",
    )
    what.add_argument("--limit", type=int, metavar="N", help="use only N emoji, for a quick try (default: all)")
    training = made.add_argument_group("training, the same for every task")
    cli.number(training, default, "epochs", "passes over the examples of each task")
    cli.number(training, default, "lr", "first learning rate of each task; it falls to 0 as a cosine")
    training.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        metavar="X",
        default=default.lrs,
        help=cli.described(
            "learning rates to choose from, for each method on held-out examples of the first task", default.lrs
        ),
    )
    cli.number(training, default, "validation", "share of the first task's examples held out for that")
    cli.number(training, default, "weight_decay", "decoupled, as in AdamW")
    cli.number(training, default, "strong_decay", "weight decay of adamw_decay")
    cli.number(training, default, "batch_size", "examples in one step")
    cli.number(training, default, "wise", "share of the weights after a task in the mean of wise_moved")
    cli.add_ftp(made.add_argument_group("FTP"), default)
    cli.add_run(made.add_argument_group("run"), PROG)
    return made


def main(
    arguments: Sequence[str] | None = None,
    console: Console | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    return cli.run_study(parser().parse_args(arguments), Config, "experiments.continual", console, on_step)
