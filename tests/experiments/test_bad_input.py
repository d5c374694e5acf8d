"""Every unusable option is refused before any work, with a message that says what was given and what is allowed."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from experiments.common.cli import guarded
from tests.experiments.running import ran, refused
from tests.experiments.small_task import STUDY, Points

MAIN = "classification"
WRONG = [
    (MAIN, "--epochs 0", "--epochs 0: must be an integer of at least 1"),
    (MAIN, "--lr nan", "--lr nan: must be a number above 0"),
    (MAIN, "--anchor-lr -1", "--anchor-lr -1.0: must be a number above 0"),
    (MAIN, "--weight-decay -0.1", "--weight-decay -0.1: must be a number of at least 0"),
    (MAIN, "--lrs 0.1 0.1", "--lrs 0.1 0.1: give different numbers above 0"),
    (MAIN, "--lrs nan", "--lrs nan: give different numbers above 0"),
    (MAIN, "--wider tpgm 0.2", "--wider tpgm: the methods are adamw, ftp, linear"),
    (MAIN, "--method ftp wise", "--method wise is made of the weights of adamw; give both"),
    (MAIN, "--method ftp ftp", "--method ftp ftp: give any of linear, adamw"),
    (MAIN, "--method muon adamw", "--method muon: is for networks of linear layers"),
    (MAIN, "--device abacus", "--device abacus cannot be used here"),
    ("sensitivity", "--wider wise 1e-2", "--wider wise: name methods of this run that are trained"),
    ("sensitivity.radius", "--radius-lrs 0.1 0.1", "--radius-lrs 0.1 0.1: give rates above 0, all different"),
    ("sensitivity.radius", "--methods adamw", "this study is of one of ftp_radius, lp_ft"),
    ("sensitivity.radius", "--anchor opinions", "--archive FILE goes with --anchor opinions"),
    ("sensitivity.free", "--methods ftp", "--methods ftp: give any of prodigy, dadapt, ldog"),
    ("sensitivity.free", "--within 3", "--within 3: give some of --seeds"),
    ("sensitivity.free", "--lrs 0.1", "each optimizer has its own default here"),
    ("sensitivity.free", "--wider ldog 2", "each optimizer has its own default here"),
    ("sensitivity", "--lrs 1e-3", "--lrs 0.001: give at least two, all different"),
    ("sensitivity", "--methods ftp", "give adamw too"),
    ("sensitivity", "--methods adamw adamv", "give any of"),
    ("sensitivity", "--methods adamw wise_ftp", "is made of the weights of ftp"),
    ("sensitivity", "--methods adamw lora", "is for networks of linear layers"),
    ("sensitivity", "--anchor opinions", "--archive FILE goes with --anchor opinions"),
    ("sensitivity", "--anchor topics --fluent x.tgz", "--fluent is a style of emoji: it goes with --anchor styles"),
    ("sensitivity", "--archive x.tar.gz", "--archive FILE goes with --anchor opinions"),
    ("tuning.search", "--problems mnist", "--problems mnist: there are digits-lr"),
    ("tuning.search", "--contenders random", "default has to be among them"),
    ("tuning.towers", "--heights 1 2", "--heights 1 2: must be from 0 to 10, and 0 among them"),
    ("tuning.towers", "--heights 0 -1", "--heights 0 -1: must be at least 0"),
    ("tuning.towers", "--heights 0 100000", "--heights 0 100000: must be from 0 to 10"),
]


@pytest.mark.parametrize(("study", "arguments", "said"), WRONG)
def test_what_cannot_run_is_refused_before_any_work(study, arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = import_module(f"experiments.{study}.study").STUDY
    if found.fast is not None:
        found.fast.check()
    assert refused(found, *arguments.split())
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(("arguments", "said"), [(["--epochs", "two"], "two"), (["--epoch", "2"], "--epochs")])
def test_what_the_command_line_refuses(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        ran(STUDY, *arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("size", [(10**15,), (2**40, 2**40)])
def test_a_run_that_memory_is_too_small_for_says_so(capsys, size):
    assert guarded(lambda: torch.empty(*size)) == 2
    assert "there is not enough memory for a run of this size" in capsys.readouterr().err

    def wrong():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        guarded(wrong)


OTHER = json.dumps({"experiment": "x", "config": {}, "status": "", "results": {}, "wall_seconds": 0})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", "is no run of this experiment"),
        ("metrics.json", "{", "is damaged or of another program"),
        ("metrics.json", "[1]", "is damaged or of another program"),
        ("metrics.json", OTHER, "a run of 'x'"),
    ],
)
def test_out_with_something_else(capsys, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    for out in (tmp_path, tmp_path / name):  # a file is no folder of a run, either
        assert ran(STUDY, "--out", str(out), data=Points()).status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "is no run" in error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, content)]


def test_changed_data(capsys, tmp_path):
    arguments = ("--method", "linear", "--out", str(tmp_path / "run"))

    def stop(name: str, step: int) -> None:
        raise KeyboardInterrupt

    assert ran(STUDY, *arguments, data=Points(), on_step=stop).status == 130
    changed = Points()
    changed.x[0] += 1
    assert ran(STUDY, *arguments, data=changed).status == 2
    assert "the data changed" in capsys.readouterr().err
