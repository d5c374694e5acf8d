"""The command line of a study whose options are a dataclass: how it is read, and how it ends."""

# The config's class is known at run time alone, and a comment beside it would show up in --help.
# pyright: reportInvalidTypeForm=false

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
import tyro
from rich.console import Console
from tyro.conf import Fixed, FlagCreatePairsOff, SuppressFixed

from experiments.common.errors import InputError
from experiments.common.options import digest, plain_values
from experiments.common.record import RunRecord
from experiments.common.trainer import OnStep

RUNS = Path("runs")


class StudyConfig(Protocol):
    """A frozen dataclass in which every field has a default, and a comment that `--help` shows."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the repetitions."""
        ...

    def check(self) -> None:
        """Raise InputError for what cannot run."""
        ...


C = TypeVar("C", bound=StudyConfig)
#: Does what is left of a run, then shows its table: of options, the run's folder, that of what is expensive, the
#: console, whether event files are written, and what is called after a step.
Work: TypeAlias = Callable[[C, Path, Path, Console, bool, OnStep | None], None]


@dataclass(frozen=True)
class Command(Generic[C]):
    """`python -m PROG`: the options are the fields of `config`, and what `--help` says of them the comments there."""

    prog: str  # the package: "experiments.classification"; its last part names the folder in runs
    about: str  # what --help says
    config: type[C]
    run: Work[C]
    report: Callable[[RunRecord], None]  # report.md and its figures, from the content of a finished record
    fast: C | None = None  # what --fast runs
    name: str | None = None  # of the folder in runs, where it is another
    threads: int | None = None  # of PyTorch, where --threads says nothing; None: as many as PyTorch takes
    boards: bool = True  # whether there is a --tensorboard

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
            self._check(given)
            threads = torch.get_num_threads()
            torch.set_num_threads(given.threads or threads)
            config, out = given.config, given.out or self._folder(given.config)
            if hasattr(config, "device"):
                config = replace(config, device=find_device(config.device))
            try:
                self.run(config, out, RUNS / "cache", console or Console(), given.tensorboard, on_step)
            finally:
                torch.set_num_threads(threads)

        return guarded(work)

    def read(self, arguments: Sequence[str] | None) -> Any:
        """Options on top of the defaults, or of those of --fast."""
        kind, device = self.config, {"device": "auto"} if hasattr(self.config, "device") else {}

        @dataclass(frozen=True)
        class Run:
            config: tyro.conf.OmitArgPrefixes[kind]
            # a quick look: one seed, little of everything; other options change what it does
            fast: bool if self.fast is not None else Fixed[bool] = False
            out: Path | None = None  # folder of the run; the same run in it is gone on with; the default is runs/NAME
            threads: int | None = self.threads  # threads of PyTorch
            # write event files of trainings into the run's folder as well
            tensorboard: bool if self.boards else Fixed[bool] = False

        def parse(default: Any) -> Any:
            return tyro.cli(
                Run, args=arguments, prog=f"python -m {self.prog}", description=self.about,
                default=Run(replace(default, **device)), config=(FlagCreatePairsOff, SuppressFixed),
            )  # fmt: skip

        run = parse(kind())
        return parse(self.fast) if run.fast else run

    def _check(self, given: Any) -> None:
        seeds, cores = given.config.seeds, os.cpu_count() or 1
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
            raise InputError(f"--seeds {' '.join(map(str, seeds))}: give different integers from 0 to 2147483647")
        if given.threads is not None and not 1 <= given.threads <= cores:
            raise InputError(f"--threads {given.threads}: must be from 1 to {cores}, the cores of this machine")

    def _folder(self, config: C) -> Path:
        """`runs/NAME`, with a digest of what differs from the defaults; without the device: the default run is that on
        any machine."""
        usual = plain_values(self.config())
        changed = {k: v for k, v in plain_values(config).items() if v != usual[k] and k != "device"}
        name = self.name or self.prog.rpartition(".")[2]
        return RUNS / (name + (f"-{digest(changed)[:8]}" if changed else ""))


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
