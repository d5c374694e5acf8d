"""A study: its command, its data, the work on them, which is kept as it is done, and a report that is made from what
is kept."""

# The config's class is known at run time alone, and a comment beside it would show up in --help.
# pyright: reportInvalidTypeForm=false

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import tyro
from rich.console import Console, RenderableType
from tyro.conf import Fixed, FlagCreatePairsOff, SuppressFixed

from experiments.common.cli import find_device, guarded
from experiments.common.errors import InputError
from experiments.common.options import digest, plain_values
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.report_kit import Table, in_terminal, where
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


class Data(Protocol):
    """What is worked on."""

    def fingerprint(self) -> str:
        """Equal for equal data."""
        ...


C = TypeVar("C", bound=StudyConfig)
D = TypeVar("D", bound=Data)


@dataclass(frozen=True)
class Session:
    """What the work of a run has beside options and data."""

    record: RunRecord
    cache: Path  # for what is expensive
    progress: Progress
    on_step: OnStep


@dataclass(frozen=True)
class Study(Generic[C, D]):
    """`python -m PROG`: the options are the fields of `config`, and what `--help` says of them the comments there. The
    work is either a list of pieces, or a function that keeps its results itself."""

    name: str  # of the record, and of its folder in runs
    prog: str  # the package: "experiments.meta.few_labels"
    about: str  # what --help says
    config: type[C]
    load: Callable[[C, Path, Progress], D]  # the folder is that of what is expensive, and kept
    report: Callable[[RunRecord], None]  # fills content["summary"]; report.md and its figures from the content alone
    table: Callable[[dict], Table]  # of the content: what the terminal shows
    pieces: Callable[[C, D], Mapping[str, Callable[[], dict]]] | None = None  # by name, in order; each result is kept
    work: Callable[[C, D, Session], None] | None = None  # in place of pieces
    facts: Callable[[D], dict[str, Any]] = methodcaller("about")  # what of the data goes into the record
    fast: C | None = None  # what --fast runs
    papers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # options that --paper NAME brings
    lines: Callable[[dict], Sequence[RenderableType]] = lambda content: ()  # what the terminal shows below the table
    packages: tuple[str, ...] = ()  # whose versions are noted beside torch's
    grow: tuple[str, ...] = ()  # options of which a run may get more entries later
    threads: int | None = 1  # of PyTorch, where --threads says nothing; None: as many as it takes

    def main(
        self,
        arguments: Sequence[str] | None = None,
        console: Console | None = None,
        on_step: OnStep | None = None,
    ) -> int:
        """The exit status: 0, 2 for unusable options or data, 130 after Ctrl-C. `on_step` is called with 0 before a
        piece, and after the steps of a training."""

        def work() -> None:
            given = self.read(arguments)
            given.config.check()
            _check(given)
            threads = torch.get_num_threads()
            torch.set_num_threads(given.threads or threads)
            config, out = given.config, given.out or self._folder(given.config)
            if hasattr(config, "device"):
                config = replace(config, device=find_device(config.device))
            try:
                self.run(config, out, RUNS / "cache", console or Console(), on_step)
            finally:
                torch.set_num_threads(threads)

        return guarded(work)

    def read(self, arguments: Sequence[str] | None) -> Any:
        """Options on top of the defaults, or of those of --fast and --paper."""
        kind, device = self.config, {"device": "auto"} if hasattr(self.config, "device") else {}

        @dataclass(frozen=True)
        class Run:
            config: tyro.conf.OmitArgPrefixes[kind]
            # a quick look: one seed, little of everything; other options change what it does
            fast: bool if self.fast is not None else Fixed[bool] = False
            out: Path | None = None  # folder of the run; the same run in it is gone on with; the default is runs/NAME
            threads: int | None = self.threads  # threads of PyTorch

        def parse(default: Any) -> Any:
            return tyro.cli(
                Run, args=arguments, prog=f"python -m {self.prog}", description=self.about,
                default=Run(replace(default, **device)), config=(FlagCreatePairsOff, SuppressFixed),
            )  # fmt: skip

        run = parse(kind())
        paper = self.papers.get(getattr(run.config, "paper", None) or "", {})
        usual: Any = self.fast if run.fast else kind()
        return parse(replace(usual, **paper)) if run.fast or paper else run

    def _folder(self, config: C) -> Path:
        """`runs/NAME`, with a digest of what differs from the defaults; without the device: the default run is that on
        any machine."""
        usual = plain_values(self.config())
        changed = {k: v for k, v in plain_values(config).items() if v != usual[k] and k != "device"}
        return RUNS / (self.name + (f"-{digest(changed)[:8]}" if changed else ""))

    def run(self, config: C, out: Path, cache: Path, console: Console, on_step: OnStep | None = None) -> None:
        """Do what is left of a run, then show its table."""
        record = RunRecord(out, self.name, plain_values(config), self.grow)
        if not record.finished:
            with Progress(console) as progress:
                data = self.load(config, cache, progress)
                record.check_data(data.fingerprint())
                record.content["data"] |= self.facts(data)
                record.note_environment(self.packages)
                record.save()  # before the work, should it not be allowed
                session = Session(record, cache, progress, on_step or (lambda name, step: None))
                if self.work is not None:
                    self.work(config, data, session)
                elif self.pieces is not None:
                    work_off(self.name, self.pieces(config, data), session)
            self.report(record)
            record.content["status"] = "finished"
            record.save()
        console.print(in_terminal(self.name, *self.table(record.content)))
        for line in self.lines(record.content):
            console.print(line)
        console.print(where(record))


def work_off(name: str, pieces: Mapping[str, Callable[[], dict]], session: Session) -> None:
    """Those whose results are not kept yet; after each the record is saved."""
    record = session.record
    left = {piece: work for piece, work in pieces.items() if piece not in record.results}
    with session.progress.task(name, len(pieces), done=len(pieces) - len(left)) as bar:
        for piece, work in left.items():
            session.on_step(piece, 0)
            record.results[piece] = work()
            record.save()
            bar.advance(note=piece)


def _check(given: Any) -> None:
    seeds, cores = given.config.seeds, os.cpu_count() or 1
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise InputError(f"--seeds {' '.join(map(str, seeds))}: give different integers from 0 to 2147483647")
    if given.threads is not None and not 1 <= given.threads <= cores:
        raise InputError(f"--threads {given.threads}: must be from 1 to {cores}, the cores of this machine")
