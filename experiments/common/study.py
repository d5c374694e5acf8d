"""A study as a list of pieces: each is worked once and kept, then the report is written from what is kept."""

# The config's class is known at run time alone, and a comment beside it would show up in --help.
# pyright: reportInvalidTypeForm=false

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import tyro
from rich.console import Console

from experiments.common.cli import RUNS, guarded, parsed
from experiments.common.errors import InputError
from experiments.common.options import digest, plain_values
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.tables import in_terminal, where

Header = list[str]
Rows = list[list[str]]


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


class Data(Protocol):
    """What the pieces work on."""

    def fingerprint(self) -> str:
        """Equal for equal data."""
        ...

    def about(self) -> dict:
        """What of it goes into the record."""
        ...


C = TypeVar("C", bound=StudyConfig)
D = TypeVar("D", bound=Data)


@dataclass(frozen=True)
class Study(Generic[C, D]):
    """All that its command needs."""

    name: str  # of the record, and of its folder in runs
    prog: str  # the package: "experiments.meta.noise"
    about: str  # what --help says
    config: type[C]
    fast: C  # what --fast runs
    load: Callable[[C, Path, Progress], D]  # the folder is that of what is expensive, and kept
    pieces: Callable[[C, D], Mapping[str, Callable[[], dict]]]  # by name, in order; what they return is kept as JSON
    report: Callable[[RunRecord], None]  # fills content["summary"]; report.md and its figures from the content alone
    table: Callable[[dict], tuple[Header, Rows]]  # of the content: what the terminal shows
    packages: tuple[str, ...] = ()  # whose versions are noted beside torch's

    def main(
        self,
        arguments: Sequence[str] | None = None,
        console: Console | None = None,
        on_piece: Callable[[str], None] | None = None,
    ) -> int:
        """The exit status: 0, 2 for unusable options or data, 130 after Ctrl-C. `on_piece` is called before a piece."""

        def work() -> None:
            run = self.read(arguments)
            run.config.check()
            self._check_seeds(run.config.seeds)
            cores = os.cpu_count() or 1
            if not 1 <= run.threads <= cores:
                raise InputError(f"--threads {run.threads}: must be from 1 to {cores}, the cores of this machine")
            threads = torch.get_num_threads()
            torch.set_num_threads(run.threads)
            try:
                self.run(run.config, run.out or self._folder(run), console or Console(), on_piece)
            finally:
                torch.set_num_threads(threads)

        return guarded(work)

    def run(self, config: C, out: Path, console: Console, on_piece: Callable[[str], None] | None = None) -> None:
        """Do what is left of a run, then show its table."""
        record = RunRecord(out, self.name, plain_values(config))
        if not record.finished:
            with Progress(console) as progress:
                data = self.load(config, RUNS / "cache", progress)
                record.check_data(data.fingerprint())
                record.content["data"] |= data.about()
                record.note_environment(self.packages)
                record.save()  # before the work, should it not be allowed
                pieces = self.pieces(config, data)
                left = {name: piece for name, piece in pieces.items() if name not in record.results}
                with progress.task(self.name, len(pieces), done=len(pieces) - len(left)) as bar:
                    for name, piece in left.items():
                        if on_piece is not None:
                            on_piece(name)
                        record.results[name] = piece()
                        record.save()
                        bar.advance(note=name)
            self.report(record)
            record.content["status"] = "finished"
            record.save()
        in_terminal(console, self.name, *self.table(record.content))
        console.print(where(record))

    def read(self, arguments: Sequence[str] | None) -> Any:
        """Options on top of the defaults, or of those of --fast."""
        kind = self.config

        @dataclass(frozen=True)
        class Run:
            config: tyro.conf.OmitArgPrefixes[kind]
            fast: bool = False  # a quick look: one seed, little of everything; other options change what it does
            out: Path | None = None  # folder of the run; the same run in it is resumed; the default is runs/NAME
            threads: int = 1  # threads of PyTorch

        def parse(default: C) -> Any:
            return parsed(Run, self.prog, self.about, Run(default), arguments)

        run = parse(kind())
        return parse(self.fast) if run.fast else run

    def _folder(self, run: Any) -> Path:
        """`runs/NAME`, with a digest of what differs from the defaults."""
        usual = plain_values(self.config())
        changed = {name: value for name, value in plain_values(run.config).items() if value != usual[name]}
        return RUNS / (self.name + (f"-{digest(changed)[:8]}" if changed else ""))

    @staticmethod
    def _check_seeds(seeds: tuple[int, ...]) -> None:
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
            raise InputError(f"--seeds {' '.join(map(str, seeds))}: give different integers from 0 to 2147483647")
