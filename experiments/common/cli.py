"""The command line that every comparison of methods has."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from experiments.common.errors import InputError
from experiments.common.methods import METHODS
from experiments.common.options import ANCHORS, GRADIENTS, Options, digest, option

RUNS = Path("runs")
Kind = TypeVar("Kind", bound=Options)


def described(text: str, default: object) -> str:
    shown = (" ".join(map(str, default)) or "none") if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def number(group: argparse._ArgumentGroup, default: Options, name: str, text: str, metavar: str = "") -> None:
    value = getattr(default, name)
    kind = type(value)
    metavar = metavar or ("N" if kind is int else "X")
    group.add_argument(option(name), type=kind, metavar=metavar, default=value, help=described(text, value))


def parser(prog: str, description: str, default: Options) -> argparse.ArgumentParser:
    """All options that `Options` has, and where the run goes."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=description, allow_abbrev=False)
    what = made.add_argument_group("what is compared")
    what.add_argument(
        "--method",
        dest="methods",
        nargs="+",
        choices=tuple(METHODS),
        default=default.methods,
        help=described("; ".join(f"{name}: {method.about}" for name, method in METHODS.items()), default.methods),
    )
    what.add_argument(
        "--seeds", nargs="+", type=int, default=default.seeds, help=described("one fine-tuning for each", default.seeds)
    )
    what.add_argument(
        "--anchor",
        choices=ANCHORS,
        default=default.anchor,
        help=described(
            "where fine-tuning starts: styles (trained beforehand on other items in all styles, its head included) or "
            "imagenet (plain ImageNet weights with a new head, which FTP then leaves unconstrained)",
            default.anchor,
        ),
    )
    number(what, default, "labels", "share of the fine-tuning examples that is used")
    tuning = made.add_argument_group("fine-tuning")
    number(tuning, default, "epochs", "passes over the fine-tuning examples")
    number(tuning, default, "lr", "first learning rate; it falls to 0 as a cosine")
    tuning.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        metavar="X",
        default=default.lrs,
        help=described(
            "learning rates to choose from, for each method on held-out examples of the style that is fine-tuned on",
            default.lrs,
        ),
    )
    number(tuning, default, "validation", "share of the fine-tuning examples held out for that, and for tpgm")
    number(tuning, default, "weight_decay", "decoupled, as in AdamW")
    number(tuning, default, "strong_decay", "weight decay of adamw_decay")
    number(tuning, default, "batch_size", "examples in one step")
    number(tuning, default, "wise", "share of the fine-tuned weights in the means of wise and wise_ftp")
    add_ftp(made.add_argument_group("FTP and TPGM"), default)
    anchor = made.add_argument_group("training of the anchor (--anchor styles), done once and kept in runs/cache")
    number(anchor, default, "anchor_epochs", "passes over the pre-training examples")
    number(anchor, default, "anchor_lr", "its first learning rate")
    add_run(made.add_argument_group("run"), prog)
    return made


def add_ftp(group: argparse._ArgumentGroup, default: Options) -> None:
    number(group, default, "kappa", "factor, 0 to 1, on hypergradients that would shrink a radius")
    number(group, default, "radius_lr", "learning rate of the radii")
    group.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default=default.gradient,
        help=described(
            "hypergradient of the radii: over all rows (paper) or over the projected rows alone (exact)",
            default.gradient,
        ),
    )


def add_run(group: argparse._ArgumentGroup, prog: str) -> None:
    """Where to compute, and where the run goes."""
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, mps or auto, which is cuda where there is one (default: auto)"
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"folder of the run; if it holds the same run, that is gone on with (default: runs/{prog.split('.')[-1]}; "
        "with options that change the defaults, a digest of them is appended)",
    )
    group.add_argument("--tensorboard", action="store_true", help="write event files into the run's folder as well")


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


def read(parsed: argparse.Namespace, kind: type[Kind], name: str) -> tuple[Kind, Path]:
    """The checked config and the folder of the run."""
    given: dict[str, Any] = {
        field.name: getattr(parsed, field.name) for field in fields(kind) if hasattr(parsed, field.name)
    }
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    device = given.pop("device")
    config = kind(**given)
    config.check()
    changed = config.changed()  # without the device: the default run is that on any machine
    default = RUNS / (name + (f"-{digest(changed)[:8]}" if changed else ""))
    return kind(**given, device=find_device(device)), parsed.out or default


def run_study(
    parsed: argparse.Namespace,
    kind: type[Options],
    package: str,
    console: Console | None,
    on_step: Callable[[str, int], None] | None,
) -> int:
    """Call `run` of the package's module `run`; returns the exit status of `guarded`."""

    def work() -> None:
        config, out = read(parsed, kind, package.rpartition(".")[2])
        run = import_module(f"{package}.run").run  # torch and all: slow, and not needed for --help
        run(config, out, RUNS / "cache", console or Console(), parsed.tensorboard, on_step)

    return guarded(work)


def guarded(work: Callable[[], None]) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        work()
    except (InputError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("Stopped. What is finished is kept: run the same command again to go on.")
        return 130
    return 0
