"""One style after the other on few emoji: the measures, what is anchored where, and that stopping changes no number."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.classification.model import Classifier
from experiments.classification.task import ClassificationTask
from experiments.common import checkpoint
from experiments.continual.config import Config
from experiments.continual.methods import METHODS, Place, mixed
from experiments.continual.metrics import average_accuracy, forgetting, learning_accuracy
from experiments.continual.study import main

from ..support.compare import same

# 48 emoji: 16 to train on in each style, so one step in an epoch.
TINY = ["--limit", "48", "--batch-size", "16", "--seeds", "0", "--device", "cpu"]
COMPARED = ["--epochs", "2", "--method", "ftp_kept", "ftp_moved"]
HEAD = {"network._fc.weight", "network._fc.bias"}


def command(*arguments: str, interrupt: tuple[str, int] | None = None) -> tuple[int, list[str], str]:
    """Status, trainings and text; `interrupt` names the training and the step after which Ctrl-C arrives."""
    trainings: list[str] = []

    def on_step(name: str, step: int) -> None:
        if name not in trainings:
            trainings.append(name)
        if (name, step) == interrupt:
            raise KeyboardInterrupt

    text = StringIO()
    status = main([*TINY, *arguments], console=Console(file=text, width=160), on_step=on_step)
    return status, trainings, text.getvalue()


def sequences(folder: Path) -> dict:
    """Everything that was measured, without times."""
    content = json.loads((folder / "metrics.json").read_text())
    assert content["status"] == "finished"
    for result in content["results"].values():
        for task in result["tasks"]:
            del task["seconds"]
    return content["results"]


def anchors(folder: Path) -> dict[str, torch.Tensor]:
    """Of the optimizer in the checkpoint."""
    optimizer = checkpoint.load(folder / "checkpoint.pt")["training"]["optimizer"]
    (group,) = optimizer["param_groups"]
    states = ((name, optimizer["state"][key]) for key, name in zip(group["params"], group["param_names"], strict=True))
    return {name: state["anchor"] for name, state in states if "anchor" in state}


@pytest.fixture(scope="module")
def imagenet() -> dict[str, torch.Tensor]:
    return Classifier(8, 64, 0.2).state_dict()


@pytest.fixture(scope="module")
def undisturbed(shared_folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_folder)
        assert command(*COMPARED, "--out", "runs/continual-undisturbed")[0] == 0
    return shared_folder / "runs" / "continual-undisturbed"


def test_measures_by_hand():
    matrix = [[80.0, 50.0, 20.0], [85.0, 70.0, 30.0], [60.0, 75.0, 90.0]]
    assert average_accuracy(matrix) == 75  # (60 + 75 + 90) / 3
    assert forgetting(matrix) == 10  # ((85 - 60) + (70 - 75)) / 2: the best of task 0 came after task 1
    assert learning_accuracy(matrix) == 80  # (80 + 70 + 90) / 3
    # What was better before its own training counts as forgotten too: max(60, 40) - 50.
    assert forgetting([[90.0, 60.0, 0.0], [90.0, 40.0, 0.0], [90.0, 50.0, 0.0]]) == 5


def test_mean_of_before_and_after():
    before = {"body": torch.tensor([0.0, 2.0]), "head.weight": torch.tensor([0.0]), "count": torch.tensor(1)}
    after = {"body": torch.tensor([4.0, 2.0]), "head.weight": torch.tensor([8.0]), "count": torch.tensor(3)}
    later = mixed(before, after, 0.25, fresh=None)
    first = mixed(before, after, 0.25, fresh="head.*")
    assert later["body"].tolist() == first["body"].tolist() == [1, 2]
    assert (later["head.weight"].item(), first["head.weight"].item()) == (2, 8)
    assert later["count"] == 3


def test_what_a_run_leaves(workplace, undisturbed):
    content = json.loads((undisturbed / "metrics.json").read_text())
    assert content["data"]["items"] == {"finetune": 16, "test": 16}
    assert not {"anchor", "labels", "anchor_lr"} & content["config"].keys()
    assert set(content["results"]) == {"ftp_kept-seed0", "ftp_moved-seed0"}
    for result in content["results"].values():
        assert [task["style"] for task in result["tasks"]] == content["config"]["order"]
        matrix = [list(task["scores"].values()) for task in result["tasks"]]
        assert result["average_accuracy"] == average_accuracy(matrix)
        assert result["forgetting"] == forgetting(matrix)
        assert [task["steps"] for task in result["tasks"]] == [2, 2, 2]
    # Nothing sets the two apart in the first task.
    firsts = [content["results"][f"{method}-seed0"]["tasks"][0] for method in ("ftp_kept", "ftp_moved")]
    assert (firsts[0]["scores"], firsts[0]["losses"]) == (firsts[1]["scores"], firsts[1]["losses"])
    steps = {file.name for file in (undisturbed / "steps").iterdir()}
    assert steps == {f"{name}-task{number}.csv" for name in content["results"] for number in (1, 2, 3)}
    rows = list(csv.DictReader((undisturbed / "steps" / "ftp_moved-seed0-task3.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert (undisturbed / "continual.png").stat().st_size > 10_000
    report = (undisturbed / "report.md").read_text()
    assert "FTPAdamW, anchor moved minus FTPAdamW, anchor kept, seed by seed" in report
    status, trainings, text = command(*COMPARED, "--out", str(undisturbed))
    assert (status, trainings) == (0, [])
    assert "FTPAdamW, anchor kept" in text


def stop_at(name: str, step: int, *arguments: str) -> dict[str, torch.Tensor]:
    """Ctrl-C, and the weights after the last whole task."""
    assert command(*arguments, interrupt=(name, step))[0] == 130
    return checkpoint.load(Path(arguments[-1]) / "sequence.pt")["weights"]


def test_wise_moved_goes_on_from_the_mean(workplace, imagenet):
    folder = Path("runs/continual-wise")
    arguments = ("--epochs", "1", "--method", "wise_moved", "--out", str(folder))

    def trained() -> dict[str, torch.Tensor]:
        """The file is still that of the task before: the new one has no whole epoch yet."""
        return checkpoint.load(folder / "checkpoint.pt")["training"]["model"]

    first = stop_at("wise_moved, seed 0, task 2", 1, *arguments)
    assert same(first, dict(mixed(imagenet, trained(), 0.5, fresh="network._fc.*")))
    assert torch.equal(first["network._fc.weight"], trained()["network._fc.weight"])
    second = stop_at("wise_moved, seed 0, task 3", 1, *arguments)
    assert same(second, dict(mixed(first, trained(), 0.5, fresh=None)))
    assert not torch.equal(second["network._fc.weight"], trained()["network._fc.weight"])


def test_anchors_and_stopping(workplace, undisturbed, imagenet, monkeypatch):
    stopped = Path("runs/continual-stopped")
    arguments = (*COMPARED, "--out", str(stopped))
    # At step 2 one epoch of the task is kept, and the second one not yet.
    assert not same(stop_at("ftp_kept, seed 0, task 2", 2, *arguments), imagenet)
    kept = anchors(stopped)
    assert kept.keys() == dict(Classifier(8, 64, 0.2).named_parameters()).keys() - HEAD
    assert all(torch.equal(anchor, imagenet[name]) for name, anchor in kept.items())

    begin = stop_at("ftp_moved, seed 0, task 2", 2, *arguments)
    moved = anchors(stopped)
    assert moved.keys() == kept.keys() | HEAD
    assert all(torch.equal(anchor, begin[name]) for name, anchor in moved.items())
    assert not torch.equal(moved["network._conv_stem.weight"], imagenet["network._conv_stem.weight"])

    def stop(task: ClassificationTask, model: torch.nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the training is over, its result not kept
        patch.setattr(ClassificationTask, "test", stop)
        assert command(*arguments)[:2] == (130, ["ftp_moved, seed 0, task 2"])
    status, trainings, _ = command(*arguments)
    assert (status, trainings) == (0, ["ftp_moved, seed 0, task 3"])
    assert sequences(stopped) == sequences(undisturbed)
    ends = [checkpoint.load(folder / "sequence.pt")["weights"] for folder in (stopped, undisturbed)]
    assert same(*ends)


@pytest.mark.parametrize(
    ("method", "first", "free"),
    [("ftp_kept", True, HEAD), ("ftp_kept", False, HEAD), ("ftp_moved", True, HEAD), ("ftp_moved", False, set())],
)
def test_what_ftp_leaves_free(imagenet, method, first, free):
    optimizer = METHODS[method].optimizer(Classifier(8, 64, 0.2), Config(), 1e-3, Place(first, imagenet))
    (group,) = optimizer.param_groups
    flags = zip(group["param_names"], group["constrained"], strict=True)
    assert {name for name, constrained in flags if not constrained} == free


def test_learning_rates_are_chosen_on_the_first_task(workplace):
    folder = Path("runs/continual-lrs")
    arguments = ("--epochs", "1", "--method", "linear", "--lrs", "0.0005", "0.02", "--out", str(folder))
    order = ("Noto outline", "Twemoji", "OpenMoji")
    status, first, _ = command(*arguments, "--order", *order, interrupt=("linear, lr 0.02", 1))
    assert (status, first) == (130, ["linear, lr 0.0005", "linear, lr 0.02"])
    status, trainings, _ = command(*arguments, "--order", *order)
    tasks = [f"linear, seed 0, task {number}" for number in (1, 2, 3)]
    assert (status, trainings) == (0, ["linear, lr 0.02", *tasks])
    content = json.loads((folder / "metrics.json").read_text())
    items = content["data"]["items"]
    assert items["train"] + items["validation"] == items["finetune"] == 16
    rates = content["rates"]["linear"]
    result = content["results"]["linear-seed0"]
    assert result["lr"] == (0.02 if rates["0.02"] > rates["0.0005"] else 0.0005)
    assert tuple(task["style"] for task in result["tasks"]) == order
    assert "held-out examples of what is learned first" in (folder / "report.md").read_text()


def test_a_diverged_sequence_is_reported(workplace):
    arguments = ("--epochs", "1", "--method", "linear", "--lr", "1e37", "--out", "runs/continual-diverged")
    status, _, text = command(*arguments)
    assert status == 0
    assert "linear probe (1 diverged)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0: must be an integer of at least 1"),
        (["--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--lrs", "0.1", "0.1"], "--lrs 0.1 0.1: give different numbers"),
        (["--validation", "1"], "--validation 1.0: must lie between 0 and 1"),
        (["--wise", "2"], "--wise 2.0: must lie between 0 and 1"),
        (["--method", "linear", "linear"], "--method linear linear: give any of linear, adamw"),
        (["--method", "ftp"], "--method ftp: give any of linear, adamw"),
        (["--order", "Emojione"], "--order 'Emojione': give each of"),
        (["--order", "Twemoji", "OpenMoji"], "give each of Twemoji, OpenMoji, Noto outline once"),
        (["--order", "Twemoji", "OpenMoji", "OpenMoji"], "--order 'Twemoji' 'OpenMoji' 'OpenMoji': give each of"),
        (["--limit", "10"], "--limit 10 is too small"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
    ],
)
def test_options(workplace, capsys, arguments, message):
    assert command(*arguments, "--out", "runs/refused")[:2] == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize("arguments", [["--anchor", "imagenet"], ["--labels", "0.5"]])
def test_what_belongs_to_another_study_is_no_option(workplace, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_out_with_another_run(workplace, capsys, undisturbed):
    assert command(*COMPARED, "--lr", "0.001", "--out", str(undisturbed))[:2] == (2, [])
    assert "holds another run (lr 0.0005 there, 0.001 here)" in capsys.readouterr().err
