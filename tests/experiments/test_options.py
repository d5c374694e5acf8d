"""Options that a study cannot use: the command says why and ends before any work."""

from importlib import import_module
from pathlib import Path

import pytest

from tests.experiments.running import refused

WRONG = [
    ("meta.noise", "--steps 5 --looks 2", "--steps 5: must be a multiple of --looks 2"),
    ("meta.noise", "--digits-lrs 0.1 0", "--digits-lrs 0.1 0.0: must be a finite number above 0"),
    ("meta.noise", "--smoothing 1", "--smoothing 1.0: must be below 1"),
    ("meta.noise", "--methods both both", "--methods both both: give at least one, each once"),
    ("meta.noise", "--datasets", "--datasets : give at least one"),
    ("meta.few_shot", "--shots 1 1", "--shots 1 1: give at least one, each once"),
    ("meta.few_shot", "--shots 7", "--shots 7: the smallest classes have 8 emoji, and 5 of each are to be predicted"),
    ("meta.few_shot", "--tasks 0", "--tasks 0: must be at least 1"),
    ("meta.few_shot", "--episodes 3", "--episodes 3: must be at least 6"),
    ("tuning.search", "--problems mnist", "--problems mnist: there are digits-lr"),
    ("tuning.search", "--contenders random random default", "give at least one, each once"),
    ("tuning.search", "--contenders random", "default has to be among them"),
    ("tuning.search", "--seconds 0", "--seconds 0.0: must be a finite number above 0"),
    ("tuning.towers", "--heights 1 2", "--heights 1 2: must be from 0 to 10, and 0 among them"),
    ("tuning.towers", "--heights 0 -1", "--heights 0 -1: must be at least 0"),
    ("tuning.towers", "--heights 0 100000", "--heights 0 100000: must be from 0 to 10"),
    ("tuning.towers", "--bases sgd sgd", "--bases sgd sgd: give at least one, each once"),
    ("tuning.knobs", "--pretrain-items 23", "--pretrain-items 23: must be at least 24"),
    ("tuning.knobs", "--radius-lrs 0.1", "--radius-lrs 0.1: give at least two different numbers"),
    ("tuning.knobs", "--lrs 0.1 0.1", "--lrs 0.1 0.1: give at least one, each once"),
    ("tuning.knobs", "--kappas 0.5 1.5", "--kappas 0.5 1.5: give at least two different numbers from 0 to 1"),
    ("tuning.knobs", "--styles 0 3", "--styles 0 3: there are 0, 1 and 2"),
]


@pytest.mark.parametrize(("study", "arguments", "said"), WRONG)
def test_what_cannot_run_is_refused_before_any_work(study, arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = import_module(f"experiments.{study}.study").STUDY
    found.fast.check()
    assert refused(found, *arguments.split())
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()
