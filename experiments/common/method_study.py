"""A study that compares ways of fine-tuning on one task: from the options to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from experiments.common.comparison import run_comparison
from experiments.common.loop import Fit, fit
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.step_log import Board
from experiments.common.tables import show, summarise, write_report
from experiments.common.task import Task
from experiments.common.trainer import OnStep, Trainer

C = TypeVar("C", bound=AnchorOptions)
T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class MethodStudy(Generic[C, T]):
    """What differs from task to task."""

    name: str  # of the record
    make_task: Callable[[C, Path, Progress], T]  # the folder is that of what is expensive, and kept
    facts: Callable[[T], dict[str, Any]]  # what of the examples goes into the record
    heading: str
    setting: Callable[[dict], str]  # of the record's content: the paragraph under the heading
    shown: str  # title of the table in the terminal
    pictures: Callable[[Path, T], None] | None = None  # draws some of the examples
    caption: str = ""  # of these
    fit: Fit = fit  # the training loop
    details: Callable[[dict], list[str]] | None = None  # of the record's content: further lines of the report
    packages: tuple[str, ...] = ()  # whose versions are noted beside torch's

    def run(
        self, config: C, out: Path, cache: Path, console: Console, tensorboard: bool, on_step: OnStep | None
    ) -> None:
        """Do what is left of a run, then show its table."""
        record = RunRecord(out, self.name, config.as_dict())
        if not record.finished:
            with Progress(console) as progress, Board(out / "tensorboard" if tensorboard else None) as board:
                task = self.make_task(config, cache, progress)
                record.check_data(task.fingerprint())
                record.note_environment(self.packages)
                run_comparison(Trainer(task, progress, board, on_step, self.fit), config, record, cache)
            record.content["data"] |= self.facts(task)
            record.content |= summarise(record.content, task)
            if self.pictures is not None:
                self.pictures(out / "pictures.png", task)
            self.report(record)
            record.content["status"] = "finished"
            record.save()
        show(record, console, self.shown, self.setting(record.content))

    def report(self, record: RunRecord) -> None:
        """report.md and its figures, from what is kept; those of radii where their numbers lie in the folder."""
        details = [] if self.details is None else self.details(record.content)
        write_report(record, self.heading, self.setting(record.content), self.caption, details)
