"""Runs side by side, and the driver of all studies: which commands it starts, what it skips, what it publishes."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experiments import report
from experiments.studies import cli
from experiments.studies.jobs import FAST, FULL, Job
from experiments.studies.publish import publish


def row(*values: tuple[float, float | None]) -> dict:
    return {"columns": dict(zip(("id", "ood"), values, strict=True)), "lr": 0.001}


def record(metric: str = "accuracy", status: str = "finished", **config: object) -> dict:
    summary = {
        "metric": metric,
        "columns": ["id", "ood"],
        "titles": {"id": "ID: Twemoji"},
        "methods": {"adamw": row((70.0, 1.0), (50.0, None)), "ftp": row((72.5, 0.5), (60.0, 2.0))},
    }
    environment = {"git_commit": "abcdef0123456789", "git_changes": False}
    content = {"experiment": "x", "status": status, "config": config, "summary": summary, "wall_seconds": 90.0}
    return content | {"environment": environment, "results": {}}


def write(folder: Path, content: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def compare(*arguments: object) -> tuple[int, str]:
    text = StringIO()
    status = report.main([*map(str, arguments)], Console(file=text, width=160))
    return status, text.getvalue()


def test_runs_side_by_side(tmp_path):
    one, two = write(tmp_path / "one", record(lr=0.1, epochs=3)), write(tmp_path / "two", record(lr=0.2, epochs=3))
    status, text = compare(one, two, "--out", tmp_path / "out")
    assert status == 0
    assert text.count("FTPAdamW") == 2
    assert "72.5 ± 0.5" in text
    assert "lr: 0.1 in one, 0.2 in two" in text
    assert "epochs" not in text
    written = (tmp_path / "out" / "report.md").read_text()
    assert "| one | AdamW | 70.0 ± 1.0 | 50.0 | 0.001 |" in written
    assert (tmp_path / "out" / "trade-off.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(status="running"), "is not finished; run its command again"),
        (
            {"experiment": "hypergradients", "status": "finished"},
            "a run of 'hypergradients', whose table is another; see",
        ),
        ({}, "holds no run (KeyError)"),
        ([1], "holds no run (TypeError)"),
    ],
)
def test_what_cannot_be_compared(tmp_path, capsys, content, message):
    folder = write(tmp_path / "run", content)
    assert compare(folder)[0] == 2
    assert message in capsys.readouterr().err


def test_no_folder_a_run_twice_and_other_metrics(tmp_path, capsys):
    one, two = write(tmp_path / "one", record()), write(tmp_path / "two", record(metric="mIoU"))
    assert compare(tmp_path / "none")[0] == 2
    assert "holds no run (FileNotFoundError)" in capsys.readouterr().err
    assert compare(one, one)[0] == 2
    assert "given twice" in capsys.readouterr().err
    assert compare(one, two)[0] == 2
    assert "measure different things (accuracy, mIoU)" in capsys.readouterr().err


@pytest.mark.parametrize("job", [*FULL, *FAST], ids=lambda job: f"{job.name} {len(job.arguments)}")
def test_every_job_is_a_command_that_its_program_takes(job):
    """Options are read and checked as the programs do it."""
    from importlib import import_module

    if job.module.endswith("language"):
        pytest.importorskip("transformers")
    import_module(f"{job.module}.study").STUDY.read(list(job.arguments)).config.check()
    assert cli.ROOT.joinpath(*job.module.split("."), "__main__.py").exists()


def test_the_fast_studies_are_what_was_asked_for():
    names = ["search", "towers", "knobs", "noise", "few-shot", "distillation", "learned-optimizer"]
    assert [job.name for job in FAST] == [
        "classification",
        "segmentation",
        "normals",
        "language",
        "hypergradients",
        *names,
    ]
    assert [job.name for job in FULL][-len(names) :] == names
    assert len({job.name for job in FULL}) == len(FULL)


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
    assert "[continual](continual/report.md)" in index
    assert "--weight-decay 0 --epochs 6`" in index
    assert "abcdef0123 | 2 |" in index
    assert (to / "continual" / "scores.png").read_bytes() == b"png"
    assert (to / "continual" / "metrics.json").read_text() == json.dumps(record())

    # With the runs gone, what is kept stays in the index; a run without its figure replaces nothing.
    (tmp_path / "none" / "segmentation").mkdir(parents=True)
    publish(FULL, tmp_path / "none", to)
    assert (to / "README.md").read_text() == index
    (out / "continual" / "scores.png").unlink()
    (out / "continual" / "report.md").write_text("new ![a figure](scores.png)")
    with pytest.raises(FileNotFoundError):
        publish(FULL, out, to)
    assert (to / "continual" / "report.md").read_text().startswith("![a figure]")


def test_after_a_failure_or_ctrl_c_nothing_else_begins(started, monkeypatch, tmp_path):
    begun = []

    def fail(job, out, threads, console):
        begun.append(job.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_job", fail)
    assert cli.main(["--out", str(tmp_path), "--workers", "1"], Console(file=StringIO())) == 130
    assert len(begun) <= 2  # the pool may have taken the next one before it was told


def test_unknown_studies_are_refused(started, capsys):
    assert cli.main(["--only", "continual", "demos"]) == 2
    assert "--only demos: the studies are segmentation, classification" in capsys.readouterr().err
    assert cli.main(["--fast", "--publish", "docs"]) == 2
    assert "--publish is for the full studies" in capsys.readouterr().err
    assert cli.main(["--workers", "0"]) == 2
    assert started == []


def test_a_job_runs_its_command_and_a_failure_is_said(tmp_path):
    said = Console(file=StringIO())
    failing = Job("failing", "cannot start", "experiments.classification", ("--epochs", "0"))
    with pytest.raises(cli.InputError, match="failing ended with status 2; see"):
        cli.run_job(failing, tmp_path, 1, said)
    assert "--epochs 0: must be an integer of at least 1" in (tmp_path / "failing.log").read_text()


def test_only_what_is_finished_is_published(tmp_path):
    write(tmp_path / "runs" / "continual", record(status="running"))
    publish(FULL, tmp_path / "runs", tmp_path / "docs")
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["README.md"]


KEPT = Path(__file__).resolve().parents[2] / "docs" / "studies"


def redraw(folder: Path, *arguments: str) -> tuple[int, str]:
    text = StringIO()
    return cli.main(["--redraw", str(folder), *arguments], Console(file=text, width=400)), text.getvalue()


def test_kept_figures_are_drawn_again_from_their_numbers(tmp_path):
    for name in ("continual", "segmentation"):
        shutil.copytree(KEPT / name, tmp_path / name)
        for figure in (tmp_path / name).glob("*.png"):
            figure.write_bytes(b"old")
    (tmp_path / "continual" / "report.md").write_text("![old words](continual.png)")
    before = {file.name: file.read_bytes() for file in (tmp_path / "segmentation").glob("*.*")}
    status, said = redraw(tmp_path)
    assert status == 0

    # All of it can be drawn: the report is written again as well.
    kept = (KEPT / "continual" / "report.md").read_text()
    new = (tmp_path / "continual" / "report.md").read_text()
    assert [line for line in new.splitlines() if line.startswith("|")] == [
        line for line in kept.splitlines() if line.startswith("|")
    ]
    assert (tmp_path / "continual" / "continual.png").stat().st_size > 1000
    assert "continual: drawn again continual.png\n" in said

    # Pictures are not kept as numbers: they stay, and so does the report.
    after = {file.name: file.read_bytes() for file in (tmp_path / "segmentation").glob("*.*")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"scores.png", "trade-off.png", "radii.png"}
    assert "as they were, for want of numbers: pictures.png" in said


def test_radii_are_published_and_drawn_again(tmp_path):
    """Those of the first seed, which the report shows."""
    run = tmp_path / "runs" / "normals"
    shutil.copytree(KEPT / "normals", run)
    shutil.copy(run / "radii" / "ftp-seed0.json", run / "radii" / "ftp-seed1.json")
    publish(FULL, tmp_path / "runs", tmp_path / "docs")
    kept = tmp_path / "docs" / "normals"
    assert [file.name for file in (kept / "radii").iterdir()] == ["ftp-seed0.json"]
    (kept / "radii.png").write_bytes(b"old")
    status, said = redraw(tmp_path / "docs")
    assert status == 0
    assert "normals: drawn again scores.png, trade-off.png, radii.png; as they were, for want of numbers: pict" in said
    assert (kept / "radii.png").stat().st_size > 1000


def test_without_a_finished_run_there_is_nothing_to_draw(tmp_path, capsys):
    write(tmp_path / "continual", record(status="running"))
    assert redraw(tmp_path)[0] == 2
    assert "no finished run of segmentation, classification" in capsys.readouterr().err
    shutil.copytree(KEPT / "continual", tmp_path / "search")
    assert redraw(tmp_path, "--only", "knobs")[0] == 2
