"""The driver of all studies: which commands it starts, what it skips, what it publishes and draws again."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments.studies import cli
from experiments.studies.jobs import FAST, FULL, Job
from experiments.studies.publish import publish


def record(status: str = "finished") -> dict:
    environment = {"git_commit": "abcdef0123456789", "git_changes": False}
    content = {"experiment": "x", "status": status, "config": {"seeds": [0]}, "wall_seconds": 90.0, "results": {}}
    return content | {"environment": environment}


def write(folder: Path, content: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("job", [*FULL, *FAST], ids=lambda job: f"{job.name} {len(job.arguments)}")
def test_every_job_is_a_command_that_its_program_takes(job):
    """Options are read and checked as the programs do it."""
    from importlib import import_module

    if job.module.endswith("language"):
        pytest.importorskip("transformers")
    import_module(f"{job.module}.study").STUDY.read(list(job.arguments)).config.check()
    assert cli.ROOT.joinpath(*job.module.split("."), "__main__.py").exists()


@pytest.fixture
def started(monkeypatch):
    """Jobs that were started, which are finished at once."""
    names = []

    def run_job(job, out, threads, console):
        names.append((job.name, threads))
        write(out / job.name, record())
        (out / job.name / "report.md").write_text("![a figure](scores.png)")
        (out / job.name / "scores.png").write_bytes(b"png")

    monkeypatch.setattr(cli, "run_job", run_job)
    monkeypatch.setattr(cli.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    return names


def test_the_driver_publishes(started, tmp_path):
    out, to = tmp_path / "runs", tmp_path / "docs"
    assert cli.main(["--out", str(out), "--publish", str(to)], Console(file=StringIO())) == 0
    assert {name for name, threads in started if threads == 1} == {job.name for job in FULL if not job.alone}
    assert [name for name, threads in started if threads == 2] == [job.name for job in FULL if job.alone]
    index = (to / "README.md").read_text()
    assert "[towers](towers/report.md)" in index
    assert "--weight-decay 0 --epochs 6`" in index
    assert "abcdef0123 | 2 |" in index
    assert (to / "towers" / "scores.png").read_bytes() == b"png"
    assert (to / "towers" / "metrics.json").read_text() == json.dumps(record())

    # With the runs gone, what is kept stays in the index, as it was run; a run without its figure replaces nothing.
    (tmp_path / "none" / "classification").mkdir(parents=True)
    index += "\nWritten by hand.\n"
    (to / "README.md").write_text(index)
    publish([replace(job, arguments=("--another",)) for job in FULL], tmp_path / "none", to)
    assert (to / "README.md").read_text() == index
    (out / "towers" / "scores.png").unlink()
    (out / "towers" / "metrics.json").write_text(json.dumps(record() | {"wall_seconds": 180.0}))
    (out / "towers" / "report.md").write_text("new ![a figure](scores.png)")
    with pytest.raises(FileNotFoundError):
        publish(FULL, out, to)
    assert (to / "towers" / "report.md").read_text().startswith("![a figure]")


def test_unknown_studies_are_refused(started, capsys):
    assert cli.main(["--only", "towers", "demos"]) == 2
    assert "--only demos: the studies are classification, family" in capsys.readouterr().err
    assert cli.main(["--fast", "--publish", "docs"]) == 2
    assert "--publish is for the full studies" in capsys.readouterr().err
    assert cli.main(["--workers", "0"]) == 2
    assert started == []


def test_a_job_runs_its_command_and_a_failure_is_said(tmp_path):
    said = Console(file=StringIO())
    failing = Job("failing", "cannot start", "experiments.tuning.towers", ("--steps", "0"))
    with pytest.raises(cli.InputError, match="failing ended with status 2; see"):
        cli.run_job(failing, tmp_path, 1, said)
    assert "--steps 0: must be at least 1" in (tmp_path / "failing.log").read_text()


KEPT = Path(__file__).resolve().parents[2] / "docs" / "studies"


def redraw(folder: Path, *arguments: str) -> tuple[int, str]:
    text = StringIO()
    return cli.main(["--redraw", str(folder), *arguments], Console(file=text, width=400)), text.getvalue()


@pytest.mark.parametrize("job", [job for job in FULL if (KEPT / job.name).exists()], ids=lambda job: job.name)
def test_kept_reports_are_made_again_from_their_numbers(job, tmp_path, monkeypatch):
    """And their figures, of which one kind is drawn."""
    if job.module.endswith("language"):
        pytest.importorskip("transformers")
    if job.name != "sensitivity-cells-poly":
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"drawn"))
    kept = tmp_path / job.name
    shutil.copytree(KEPT / job.name, kept)
    (kept / "old.png").write_bytes(b"old")
    for figure in kept.glob("*.png"):
        figure.write_bytes(b"old")
    assert redraw(tmp_path)[0] == 0
    assert (kept / "report.md").read_text() == (KEPT / job.name / "report.md").read_text()
    assert {file.name for file in kept.glob("*.png")} == {file.name for file in (KEPT / job.name).glob("*.png")}
    stay = {figure.name for figure in kept.glob("*.png") if figure.read_bytes() == b"old"}
    assert stay <= {"pictures.png"}


def test_without_a_finished_run_there_is_nothing_to_draw(tmp_path, capsys):
    write(tmp_path / "towers", record(status="running"))
    assert redraw(tmp_path)[0] == 2
    assert "no finished run of classification, family" in capsys.readouterr().err
