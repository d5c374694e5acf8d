"""The command line of the study."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.classification.config import ANCHORS, GRADIENTS, METHODS, Config, digest, option
from experiments.common.errors import InputError

RUNS = Path("runs")
DEMO = Config()


def _help(text: str, default: object) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments.classification",
        description="Fine-tune a pre-trained network on one style of pictures and test it in others: how much does "
        "each method keep of what the network knew? Without options this is the demo: emoji in three styles, AdamW "
        "against FTPAdamW and a linear probe, about six minutes on two CPU cores. Stop it at any time; the same "
        "command goes on from there.",
        allow_abbrev=False,
    )
    what = made.add_argument_group("what is compared")
    what.add_argument(
        "--method",
        dest="methods",
        nargs="+",
        choices=METHODS,
        default=DEMO.methods,
        help=_help(
            "ways of fine-tuning: adamw (every weight free), ftp (every weight within a learned radius of the anchor), "
            "linear (only the head)",
            DEMO.methods,
        ),
    )
    what.add_argument(
        "--seeds", nargs="+", type=int, default=DEMO.seeds, help=_help("one fine-tuning for each", DEMO.seeds)
    )
    what.add_argument(
        "--anchor",
        choices=ANCHORS,
        default=DEMO.anchor,
        help=_help(
            "where fine-tuning starts: styles (trained beforehand on other items in all styles, its head included) or "
            "imagenet (plain ImageNet weights with a new head, which FTP then leaves unconstrained)",
            DEMO.anchor,
        ),
    )

    def number(group: argparse._ArgumentGroup, name: str, kind: type, text: str) -> None:
        default = getattr(DEMO, name)
        group.add_argument(
            option(name), type=kind, metavar="N" if kind is int else "X", default=default, help=_help(text, default)
        )

    tuning = made.add_argument_group("fine-tuning")
    number(tuning, "epochs", int, "passes over the fine-tuning pictures")
    number(tuning, "lr", float, "first learning rate; it falls to 0 as a cosine")
    number(tuning, "weight_decay", float, "decoupled, as in AdamW")
    number(tuning, "batch_size", int, "pictures in one step")
    ftp = made.add_argument_group("FTP")
    number(ftp, "kappa", float, "factor, 0 to 1, on hypergradients that would shrink a radius")
    number(ftp, "radius_lr", float, "learning rate of the radii")
    ftp.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default=DEMO.gradient,
        help=_help(
            "hypergradient of the radii: over all rows (paper) or over the projected rows alone (exact)", DEMO.gradient
        ),
    )
    anchor = made.add_argument_group("training of the anchor (--anchor styles), done once and kept in runs/cache")
    number(anchor, "anchor_epochs", int, "passes over the pre-training pictures")
    number(anchor, "anchor_lr", float, "its first learning rate")
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
    run = made.add_argument_group("run")
    run.add_argument(
        "--device", default="auto", help="cpu, cuda, mps or auto, which is cuda where there is one (default: auto)"
    )
    run.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the run; if it holds the same run, that is gone on with (default: runs/classification; with "
        "options that change the demo, a digest of them is appended)",
    )
    return made


def find_device(name: str) -> str:
    """Refuse a device that torch does not know or this machine does not have."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); try cpu, cuda, mps or auto") from error
    return name


def read(parsed: argparse.Namespace) -> tuple[Config, Path]:
    """The config and the folder of the run."""
    config = Config(
        methods=tuple(parsed.methods),
        seeds=tuple(parsed.seeds),
        epochs=parsed.epochs,
        lr=parsed.lr,
        weight_decay=parsed.weight_decay,
        batch_size=parsed.batch_size,
        anchor=parsed.anchor,
        anchor_epochs=parsed.anchor_epochs,
        anchor_lr=parsed.anchor_lr,
        kappa=parsed.kappa,
        radius_lr=parsed.radius_lr,
        gradient=parsed.gradient,
        data_root=parsed.data_root,
        id_domain=parsed.id_domain,
        limit=parsed.limit,
    )
    config.check()
    changed = config.changed()  # without the device: the demo is the demo on any machine
    default = RUNS / ("classification" + (f"-{digest(changed)[:8]}" if changed else ""))
    return replace(config, device=find_device(parsed.device)), parsed.out or default


def main(
    arguments: Sequence[str] | None = None,
    console: Console | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    parsed = parser().parse_args(arguments)
    console = console or Console()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        config, out = read(parsed)
        from experiments.classification.train import run  # torch and all: slow, and not needed for --help

        run(config, out, RUNS / "cache", console, on_step)
    except (InputError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("Stopped. Finished epochs are kept: run the same command again to go on.")
        return 130
    return 0
