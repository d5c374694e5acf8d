"""The frame of studies: options, pieces that are kept, and what a stopped run leaves."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiments.common.errors import InputError
from experiments.common.examples import Examples, split
from experiments.common.study import Study
from tests.experiments.running import ran


@dataclass(frozen=True)
class Config:
    """Of the sums that are made here."""

    seeds: tuple[int, ...] = (0, 1, 2)  # one sum for each
    start: float = 0.5  # what each begins with

    def check(self) -> None:
        if self.start < 0:
            raise InputError(f"--start {self.start}: must be at least 0")


class Data:
    def fingerprint(self) -> str:
        return "7"

    def about(self) -> dict:
        return {"numbers": 1}


def write_report(record):
    record.content["summary"] = {"total": sum(result["sum"] for result in record.results.values())}
    (record.folder / "report.md").write_text("# Sums\n")


STUDY = Study(
    name="sums",
    prog="experiments.sums",
    about="Adds numbers up.",
    config=Config,
    fast=Config(seeds=(5,)),
    load=lambda config, cache, progress: Data(),
    pieces=lambda config, data: {
        f"seed{s}": lambda s=s: {"sum": config.start + s, "threads": torch.get_num_threads()} for s in config.seeds
    },
    report=write_report,
    table=lambda content: (["what", "total"], [["sums", f"{content['summary']['total']:g}"]]),
)


def command(*arguments, stop_before=None):
    return ran(STUDY, *arguments, stop_before=stop_before)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_keeps_its_pieces_and_ends_with_report_and_table():
    status, text, begun = command()
    content = json.loads(Path("runs/sums/metrics.json").read_text())
    assert status == 0
    assert begun == ["seed0", "seed1", "seed2"]
    assert "4.5" in text
    assert content["status"] == "finished"
    assert content["summary"] == {"total": 4.5}
    assert content["data"] == {"fingerprint": "7", "numbers": 1}
    assert content["config"]["seeds"] == [0, 1, 2]
    assert all(result["threads"] == 1 for result in content["results"].values())
    assert command()[2] == []  # finished: shown again, nothing is worked again


def test_a_stopped_run_goes_on_where_it_was():
    assert command(stop_before="seed1")[0] == 130
    assert command()[2] == ["seed1", "seed2"]


def test_options_stand_on_top_of_those_of_fast(capsys):
    assert command("--fast", "--start", "2")[2] == ["seed5"]
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("sums-")
    assert json.loads((folder / "metrics.json").read_text())["config"]["start"] == 2
    with pytest.raises(SystemExit) as ended:
        command("--strat", "2")
    assert ended.value.code == 2
    assert "--start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "-1"), "--start -1.0: must be at least 0"),
        (("--seeds", "1", "1"), "--seeds 1 1: give different integers"),
        (("--seeds",), "give different integers"),
        (("--seeds", "-3"), "give different integers"),
        (("--threads", "5000000000"), "--threads 5000000000: must be from 1 to "),
        (("--threads", "0"), "--threads 0: must be from 1 to "),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(arguments, said, capsys):
    status, _, begun = command(*arguments)
    assert status == 2
    assert begun == []
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_of_another_run_is_refused(capsys):
    assert command("--out", "here")[0] == 0
    assert command("--out", "here", "--start", "3")[0] == 2
    assert "start 0.5 there, 3.0 here" in capsys.readouterr().err


def test_parts_are_disjoint_and_share_the_labels():
    examples = Examples(torch.arange(90), torch.arange(90) % 3)
    parts = split(examples, {"train": 60, "test": 30}, seed=1)
    assert sorted([*parts["train"].x.tolist(), *parts["test"].x.tolist()]) == list(range(90))
    assert parts["train"].y.bincount().tolist() == [20, 20, 20]
    assert torch.equal(parts["test"].y, parts["test"].x % 3)
    again, other = split(examples, {"train": 60}, seed=1)["train"], split(examples, {"train": 60}, seed=2)["train"]
    assert torch.equal(again.x, parts["train"].x)
    assert not torch.equal(other.x, again.x)
    with pytest.raises(InputError, match="there are 90 examples"):
        split(examples, {"train": 91}, seed=0)
