"""The command line of a study whose options are a dataclass: how it is read, and how it ends."""

# The config's class is known at run time alone, and a comment beside it would show up in --help.
# pyright: reportInvalidTypeForm=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import tyro
from rich.console import Console

from experiments.common.errors import InputError
from experiments.common.options import Options, digest
from experiments.common.record import RunRecord
from experiments.common.trainer import OnStep

RUNS = Path("runs")
C = TypeVar("C", bound=Options)
C_in = TypeVar("C_in", bound=Options, contravariant=True)


class Work(Protocol[C_in]):
    """What a command does once its options are read."""

    def __call__(
        self, config: C_in, out: Path, cache: Path, console: Console, tensorboard: bool, on_step: OnStep | None
    ) -> None:
        """Do what is left of a run, then show its table. `on_step` lets a test interrupt at a given step."""
        ...


@dataclass(frozen=True)
class Command(Generic[C]):
    """`python -m PROG`: the options are the fields of `config`, and what `--help` says of them the comments there."""

    prog: str  # the package: "experiments.classification"; its last part names the folder in runs
    about: str  # what --help says
    config: type[C]
    run: Work[C]
    report: Callable[[RunRecord], None]  # report.md and its figures, from the content of a finished record

    def main(
        self,
        arguments: Sequence[str] | None = None,
        console: Console | None = None,
        on_step: OnStep | None = None,
    ) -> int:
        """The exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""

        def work() -> None:
            given = self.read(arguments)
            given.config.check()
            # The folder's name goes without the device: the default run is that on any machine.
            changed = replace(given.config, device=self.config().device).changed()
            name = self.prog.rpartition(".")[2] + (f"-{digest(changed)[:8]}" if changed else "")
            config = replace(given.config, device=find_device(given.config.device))
            out = given.out or RUNS / name
            self.run(config, out, RUNS / "cache", console or Console(), given.tensorboard, on_step)

        return guarded(work)

    def read(self, arguments: Sequence[str] | None) -> Any:
        """Options on top of the defaults."""
        kind = self.config

        @dataclass(frozen=True)
        class Run:
            config: tyro.conf.OmitArgPrefixes[kind]
            out: Path | None = None  # folder of the run; the same run in it is gone on with; the default is runs/NAME
            tensorboard: bool = False  # write event files into the run's folder as well

        return parsed(Run, self.prog, self.about, Run(replace(kind(), device="auto")), arguments)


def parsed(kind: type, prog: str, about: str, default: Any, arguments: Sequence[str] | None) -> Any:
    """Fields of a dataclass as options; fixed ones are none."""
    return tyro.cli(
        kind, args=arguments, prog=f"python -m {prog}", description=about, default=default,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed),
    )  # fmt: skip


def find_device(name: str) -> str:
    """Refuse a device that torch does not know or this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); try cpu, cuda, mps or auto") from error
    return name


def guarded(work: Callable[[], None]) -> int:
    """Returns the exit status: 0, 2 for unusable options or data, 130 after Ctrl-C."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        work()
    except (InputError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        errors.print("error: there is not enough memory for a run of this size; give smaller numbers", style="red")
        return 2
    except KeyboardInterrupt:
        errors.print("Stopped. What is finished is kept: run the same command again to go on.")
        return 130
    return 0


def _lacks_memory(error: Exception) -> bool:
    """Torch has a class of its own for a GPU's memory alone."""
    texts = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)
