"""Copies the reports, figures and numbers of finished runs to where they are kept, with an index; and draws what is
kept again, from its numbers."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.common import checkpoint
from experiments.common.record import RunRecord
from experiments.studies.jobs import Job

NOTE = (
    "Runs side by side share the cores: their seconds and images per second compare methods within a run, and are not "
    "those of a quiet machine."
)


def finished(folder: Path) -> dict | None:
    """The record of a run that is finished."""
    file = folder / "metrics.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    return content if content.get("status") == "finished" else None


def figures_of(report: str) -> list[str]:
    """The files that a report shows."""
    return re.findall(r"\]\(([\w.-]+\.png)\)", report)


def publish(jobs: Sequence[Job], runs: Path, to: Path) -> None:
    """`report.md`, its figures and the numbers of each finished run. The table in README.md lists all that is kept, as
    it was run; what stands below it stays."""
    index = to / "README.md"
    before = index.read_text() if index.exists() else f"|\n\n{NOTE}\n"
    below = before.partition("|\n\n")[2]
    known = {line.partition("]")[0].removeprefix("| ["): line for line in before.splitlines() if line.startswith("| [")}
    lines = [
        "# Studies",
        "",
        "For those who check or repeat a study. Reports, figures and numbers are as the runs left them. All of them "
        "again: `make study` (resumable); a quick look: `make study-fast`.",
        "",
        "| Study | What | Command | Commit | Minutes |",
        "|---|---|---|---|--:|",
    ]
    for job in jobs:
        source, kept = runs / job.name, to / job.name
        if new := finished(source) not in (None, finished(kept)):
            report = (source / "report.md").read_text()
            names = ("report.md", "metrics.json", *figures_of(report))
            files = {name: (source / name).read_bytes() for name in names}  # all, or none is replaced
            for name, made in files.items():
                checkpoint.write(kept / name, lambda file, made=made: file.write(made))
        if (content := finished(kept)) is not None:
            commit = (content["environment"]["git_commit"] or "unknown")[:10]
            commit += " with changes" if content["environment"]["git_changes"] else ""
            link = f"[{job.name}]({job.name}/report.md)"
            minutes = content["wall_seconds"] / 60
            line = f"| {link} | {job.about} | `{job.command()}` | {commit} | {minutes:.0f} |"
            lines.append(line if new else known.get(job.name, line))
    checkpoint.write_text(index, "\n".join([*lines, "", below]))


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
