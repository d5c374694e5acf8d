"""Copies the reports, figures and numbers of finished runs to where they are kept, with an index."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.common import checkpoint
from experiments.studies.jobs import Job


def publish(jobs: Sequence[Job], runs: Path, to: Path) -> None:
    """`report.md`, the figures it shows and `metrics.json` of each finished run; README.md lists them."""
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
        folder = runs / job.name
        content = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").exists() else {}
        if content.get("status") != "finished":
            continue
        report = (folder / "report.md").read_text()
        for name in ("report.md", "metrics.json", *re.findall(r"\]\(([\w.-]+\.png)\)", report)):
            content_of = (folder / name).read_bytes()
            checkpoint.write(to / job.name / name, lambda file, content=content_of: file.write(content))
        commit = (content["environment"]["git_commit"] or "unknown")[:10]
        commit += " with changes" if content["environment"]["git_changes"] else ""
        minutes = content["wall_seconds"] / 60
        lines.append(
            f"| [{job.name}]({job.name}/report.md) | {job.about} | `{job.command()}` | {commit} | {minutes:.0f} |"
        )
    lines += [
        "",
        "Runs side by side shared the cores, one thread each, so their seconds and images per second are not those of "
        "a quiet machine; the runs named `cost` had it to themselves.",
    ]
    checkpoint.write_text(to / "README.md", "\n".join(lines) + "\n")
