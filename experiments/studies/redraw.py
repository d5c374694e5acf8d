"""Draws the figures of kept reports again, from the numbers beside them."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.studies.jobs import Job
from experiments.studies.publish import figures_of, finished


def redraw(job: Job, kept: Path) -> tuple[list[str], list[str]]:
    """The figures that are drawn again, and those of the report that stay, for want of numbers. The report is written
    again; a figure that it no longer shows is deleted."""
    content = finished(kept)
    assert content is not None
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder)
        shutil.copy(kept / "metrics.json", new)
        import_module(f"{job.module}.study").STUDY.report(RunRecord(new, content["experiment"], content["config"]))
        shown = figures_of((new / "report.md").read_text())
        drawn = [name for name in shown if (new / name).exists()]
        for name in (*drawn, "report.md"):
            made = (new / name).read_bytes()
            checkpoint.write(kept / name, lambda file, made=made: file.write(made))
    for figure in kept.glob("*.png"):
        if figure.name not in shown:
            figure.unlink()
    return drawn, [name for name in shown if name not in drawn]


def kept_of(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Those that have a finished run there."""
    return [job for job in jobs if finished(folder / job.name) is not None]
