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

#: What was run, published and replaced: nothing is left out because of its result.
RETIRED = (
    "Replaced, and kept by git (`git show 7c20796c2c:docs/studies/NAME/report.md`): `classification-imagenet`, of one "
    "split, by sensitivity-imagenet; `language` and `language-plain`, whose grids began above AdamW's best rate, by "
    "sensitivity-topics and sensitivity-minilm; `few-labels`, which chose its rates on 12 pictures; `across.md`, a "
    "mean over studies of one split.",
    "",
    "Retired, and kept by git (`git show 905800e:docs/studies/NAME/report.md`): `continual`, three styles of emoji "
    "learned one after the other, and `normals`, surface normals of drawn scenes. Both had one split and are neither "
    "classification nor segmentation.",
    "",
    "Retired, and kept by git (`git show fd54b5d:docs/studies/NAME/report.md`): `distillation`, one and ten learned "
    "pictures a class in place of a dataset, and `learned-optimizer`, an MLP as update rule. Their results are in "
    "[differentiate or search](../when.md#retired-studies); recipes have both in at most 60 lines.",
    "",
    "Replaced, and kept by git (`git show 1c2552f:docs/studies/NAME/report.md`): `sensitivity-styles`, `-imagenet`, "
    "`-topics`, `-minilm`, `-cells` and `-opinions`, of three splits and eight rates, which were chosen on the tests. "
    "Their results are in [what the studies say](../results.md#older-runs).",
    "",
    "Retired, and kept by git (`git show 1c2552f:docs/studies/NAME/report.md`): `noise`, digits and tweets of which "
    "40 % are labelled wrong. `few-labels` asks the same of whole pre-trained networks.",
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
    """`report.md`, its figures and the numbers of each finished run; README.md lists all that is kept as it was run."""
    index = to / "README.md"
    before = index.read_text().splitlines() if index.exists() else []
    known = {line.partition("]")[0].removeprefix("| ["): line for line in before if line.startswith("| [")}
    lines = [
        "# Studies",
        "",
        "Reports, figures and numbers as the runs left them. All of them again: `make study` (resumable); a quick "
        "look: `make study-fast`.",
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
    lines += [
        "",
        *RETIRED,
        "",
        "Runs side by side share the cores: their seconds and images per second compare methods within a run, and are "
        "not those of a quiet machine.",
    ]
    checkpoint.write_text(index, "\n".join(lines) + "\n")


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
