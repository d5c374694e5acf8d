"""A study that compares ways of fine-tuning on one task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from experiments.common.comparison import run_comparison
from experiments.common.loop import Fit, fit
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.study import Session, Study
from experiments.common.tables import differences, summarise, table_of, write_report
from experiments.common.task import Task
from experiments.common.trainer import Trainer

C = TypeVar("C", bound=AnchorOptions)
T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class MethodStudy(Generic[C, T]):
    """What differs from task to task."""

    make_task: Callable[[C, Path, Progress], T]  # the folder is that of what is expensive, and kept
    facts: Callable[[T], dict[str, Any]]  # what of the examples goes into the record
    heading: str = ""
    setting: Callable[[dict], str] = lambda content: ""  # of the record's content: the paragraph under the heading
    pictures: Callable[[Path, T], None] | None = None  # draws some of the examples
    caption: str = ""  # of these
    fit: Fit = fit  # the training loop
    packages: tuple[str, ...] = ()  # whose versions are noted beside torch's

    def study(self, name: str, about: str, config: type[C], fast: C) -> Study[C, T]:
        """The study of `experiments.NAME`."""
        return Study(
            name=name,
            prog=f"experiments.{name}",
            about=f"{about} Stop it at any time; the same command goes on from there.",
            config=config,
            fast=fast,
            load=self.make_task,
            facts=self.facts,
            work=self._work,
            report=self._report,
            table=lambda content: table_of(content["summary"], narrow=True),
            lines=lambda content: [self.setting(content), *differences(content["summary"])],
            packages=self.packages,
            threads=None,
        )

    def _work(self, config: C, task: T, session: Session) -> None:
        record = session.record
        trainer = Trainer(task, session.progress, session.on_step, self.fit)
        run_comparison(trainer, config, record, session.cache)
        record.content |= summarise(record.content, task)
        if self.pictures is not None:
            self.pictures(record.folder / "pictures.png", task)

    def _report(self, record: RunRecord) -> None:
        """report.md and its figures, from what is kept; those of radii where their numbers lie in the folder."""
        write_report(record, self.heading, self.setting(record.content), self.caption)
