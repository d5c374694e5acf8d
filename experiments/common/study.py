"""A study: its data, the work on them, which is kept as it is done, and a report that is made from what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from experiments.common.cli import Command, StudyConfig
from experiments.common.options import plain_values
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.step_log import Board
from experiments.common.tables import in_terminal, where
from experiments.common.trainer import OnStep

Header = list[str]
Rows = list[list[str]]


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
    board: Board
    on_step: OnStep


@dataclass(frozen=True)
class Study(Generic[C, D]):
    """All that its command needs. The work is either a list of pieces, or a function that keeps its results itself."""

    name: str  # of the record, and of its folder in runs
    prog: str  # the package: "experiments.meta.noise"
    about: str  # what --help says
    config: type[C]
    load: Callable[[C, Path, Progress], D]  # the folder is that of what is expensive, and kept
    report: Callable[[RunRecord], None]  # fills content["summary"]; report.md and its figures from the content alone
    table: Callable[[dict], tuple[Header, Rows]]  # of the content: what the terminal shows
    pieces: Callable[[C, D], Mapping[str, Callable[[], dict]]] | None = None  # by name, in order; each result is kept
    work: Callable[[C, D, Session], None] | None = None  # in place of pieces
    facts: Callable[[D], dict[str, Any]] = methodcaller("about")  # what of the data goes into the record
    fast: C | None = None  # what --fast runs
    lines: Callable[[dict], Sequence[str]] = lambda content: ()  # what the terminal shows below the table
    packages: tuple[str, ...] = ()  # whose versions are noted beside torch's
    threads: int | None = 1  # of PyTorch, where --threads says nothing; None: as many as it takes

    def main(
        self,
        arguments: Sequence[str] | None = None,
        console: Console | None = None,
        on_step: OnStep | None = None,
    ) -> int:
        """The exit status: 0, 2 for unusable options or data, 130 after Ctrl-C. `on_step` is called with 0 before a
        piece, and after the steps of a training."""
        return self._command().main(arguments, console, on_step)

    def read(self, arguments: Sequence[str] | None) -> Any:
        """Options on top of the defaults, or of those of --fast."""
        return self._command().read(arguments)

    def _command(self) -> Command[C]:
        return Command(
            self.prog, self.about, self.config, self.run, self.report,
            fast=self.fast, name=self.name, threads=self.threads, boards=self.work is not None,
        )  # fmt: skip

    def run(
        self,
        config: C,
        out: Path,
        cache: Path,
        console: Console,
        tensorboard: bool = False,
        on_step: OnStep | None = None,
    ) -> None:
        """Do what is left of a run, then show its table."""
        record = RunRecord(out, self.name, plain_values(config))
        if not record.finished:
            with Progress(console) as progress, Board(out / "tensorboard" if tensorboard else None) as board:
                data = self.load(config, cache, progress)
                record.check_data(data.fingerprint())
                record.content["data"] |= self.facts(data)
                record.note_environment(self.packages)
                record.save()  # before the work, should it not be allowed
                session = Session(record, cache, progress, board, on_step or (lambda name, step: None))
                if self.work is not None:
                    self.work(config, data, session)
                elif self.pieces is not None:
                    work_off(self.name, self.pieces(config, data), session)
            self.report(record)
            record.content["status"] = "finished"
            record.save()
        in_terminal(console, self.name, *self.table(record.content))
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
