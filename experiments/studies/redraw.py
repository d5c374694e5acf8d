"""Draws the figures of kept reports again, from the numbers beside them."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.studies.jobs import Job
from experiments.studies.publish import figures_of, finished, numbers_of


def redraw(job: Job, kept: Path) -> tuple[list[str], list[str]]:
    """The figures that are drawn again and those that stay, for want of numbers. The report is written again too, if
    none stays."""
    content = finished(kept)
    assert content is not None
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder)
        for name in numbers_of(kept, content):
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copy(kept / name, new / name)
        import_module(f"{job.module}.study").STUDY.report(RunRecord(new, content["experiment"], content["config"]))
        shown = figures_of((kept / "report.md").read_text())
        drawn = [name for name in shown if (new / name).exists()]
        stay = [name for name in shown if name not in drawn]
        for name in drawn if stay else [*figures_of((new / "report.md").read_text()), "report.md"]:
            made = (new / name).read_bytes()
            checkpoint.write(kept / name, lambda file, made=made: file.write(made))
    return drawn, stay


def kept_of(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those that have a finished run there."""
    return [job for job in jobs if finished(folder / job.name) is not None]
