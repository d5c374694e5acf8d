"""The main job from end to end on few emoji: what it leaves, and that stopping it changes no number."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.classification.model import Classifier
from experiments.common import checkpoint

from ..support.compare import same
from ..support.measured import numbers
from ..support.processes import Patience, finish, start

ROOT = Path(__file__).resolve().parents[2]


def without_times(x):
    """Of a checkpoint."""
    if isinstance(x, dict):
        log = {"log": [row[:-1] for row in x["log"]]} if "log" in x else {}  # seconds come last in each row
        return {key: without_times(value) for key, value in (x | log).items() if key != "seconds"}
    return type(x)(map(without_times, x)) if type(x) in (list, tuple) else x


def test_what_a_run_leaves(workplace, finished):
    files = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    figures = {"scores.png", "trade-off.png", "pictures.png", "radii.png"}
    steps = {f"steps/{method}-seed0.csv" for method in ("adamw", "ftp", "linear")}
    assert files == figures | steps | {"metrics.json", "report.md", "checkpoint.pt", "radii/ftp-seed0.json"}
    content = json.loads((finished / "metrics.json").read_text())
    assert content["config"]["limit"] == 48
    assert content["environment"]["packages"]["torch"]
    assert content["data"]["items"] == {"pretrain": 16, "finetune": 16, "test": 16}
    assert set(content["results"]) == {"adamw-seed0", "ftp-seed0", "linear-seed0"}
    for result in content["results"].values():
        assert result["steps"] == 4
        assert set(result["scores"]) == {"Twemoji", "OpenMoji", "Noto outline"}
        assert result["id"] == result["scores"]["Twemoji"]
        assert result["ood"] == pytest.approx((result["scores"]["OpenMoji"] + result["scores"]["Noto outline"]) / 2)
    report = (finished / "report.md").read_text()
    assert all(name in report for name in ("FTPAdamW", "linear probe", *figures))
    assert [path.name for path in Path().iterdir()] == ["runs"]  # nothing else below the current directory


def test_a_finished_run_shows_its_table_again(workplace, finished):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    again = workplace.command("--epochs", "2", "--out", str(finished))
    assert (again.status, again.trainings) == (0, [])
    assert "FTPAdamW minus AdamW" in again.text
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_run_stopped_in_every_training_ends_with_the_same_numbers(workplace, finished):
    stopped = Path("runs/stopped")
    arguments = ("--epochs", "2", "--out", str(stopped))
    # An epoch has two steps. Stopped at step 1 there is no checkpoint, at 3 one lies behind, at 4 it comes too late.
    assert workplace.command(*arguments, interrupt=("adamw, seed 0", 1)).status == 130
    assert json.loads((stopped / "metrics.json").read_text())["results"] == {}
    second = workplace.command(*arguments, interrupt=("ftp, seed 0", 3))
    assert (second.status, second.trainings) == (130, ["adamw, seed 0", "ftp, seed 0"])
    saved = checkpoint.load(stopped / "checkpoint.pt")
    assert saved["identity"]["training"] == "ftp, seed 0"
    assert saved["training"]["progress"]["step"] == 2
    assert len(saved["training"]["progress"]["observed"]) == 2
    assert [row[0] for row in saved["training"]["progress"]["log"]] == [1, 2]
    third = workplace.command(*arguments, interrupt=("linear, seed 0", 4))
    assert (third.status, third.trainings) == (130, ["ftp, seed 0", "linear, seed 0"])
    last = workplace.command(*arguments)
    assert (last.status, last.trainings) == (0, ["linear, seed 0"])
    assert numbers(stopped) == numbers(finished)
    states = [checkpoint.load(folder / "checkpoint.pt")["training"] for folder in (stopped, finished)]
    assert set(states[0]) == {"model", "optimizer", "scheduler", "rng", "progress"}
    assert same(*map(without_times, states))


def test_interrupted_anchor_ends_with_the_same_weights(workplace, cache, tmp_path, monkeypatch):
    arguments = ("--anchor-epochs", "2", "--method", "linear", "--out", "runs/anchor")
    enough = ("linear, seed 0", 1)
    assert workplace.command(*arguments, interrupt=enough).status == 130
    undisturbed = {file.name: file for file in cache.glob("anchor-*.pt")}
    other = tmp_path / "runs" / "cache"
    other.mkdir(parents=True)
    (drawn,) = cache.glob("emoji-*.pt")
    (other / drawn.name).symlink_to(drawn)
    monkeypatch.chdir(tmp_path)
    first = workplace.command(*arguments, interrupt=("anchor", 3))  # two steps an epoch
    assert (first.status, first.trainings) == (130, ["anchor"])
    assert [file.name.split(".", 1)[1] for file in other.glob("anchor-*")] == ["unfinished.pt"]
    second = workplace.command(*arguments, interrupt=enough)
    assert second.trainings == ["anchor", "linear, seed 0"]
    (resumed,) = other.glob("anchor-*.pt")
    assert same(*(without_times(checkpoint.load(file)) for file in (resumed, undisturbed[resumed.name])))
    assert workplace.command(*arguments, interrupt=enough).trainings == ["linear, seed 0"]  # the anchor is kept


def test_ctrl_c_says_one_line(workplace, shared_folder):
    command = [sys.executable, "-m", "experiments.classification", "--limit", "48", "--epochs", "500"]
    command += ["--anchor-epochs", "1", "--batch-size", "8", "--method", "linear", "ftp", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with start(
        [*command, "--out", "runs/ctrl-c"],
        cwd=shared_folder,
        env=environment,
        # Where the tests run in the background, a shell has made them ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            patience = Patience([process.pid])
            while not (shared_folder / "runs/ctrl-c/checkpoint.pt").exists():
                assert process.poll() is None
                assert not patience.lost()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = finish(process)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert errors.strip() == "Stopped. What is finished is kept: run the same command again to go on."


def test_plain_imagenet_weights_leave_the_head_free(workplace, finished):
    done = workplace.command("--anchor", "imagenet", "--method", "ftp", "--out", "runs/imagenet")
    assert (done.status, done.trainings) == (0, ["ftp, seed 0"])
    free = json.loads(Path("runs/imagenet/radii/ftp-seed0.json").read_text())["layers"]
    constrained = json.loads((finished / "radii/ftp-seed0.json").read_text())["layers"]
    assert set(constrained) - set(free) == {"network._fc.weight", "network._fc.bias"}


def test_the_linear_probe_moves_the_head_alone_and_batch_norm_keeps_its_statistics(cache, finished):
    saved = checkpoint.load(finished / "checkpoint.pt")
    assert saved["identity"]["training"] == "linear, seed 0"
    probe, pretrained = saved["training"]["model"], Classifier(8, 64, 0.0).state_dict()
    # The cache is one of the session: another file's task may have left its anchor there.
    cached = [checkpoint.load(file)["model"] for file in cache.glob("anchor-*.pt")]
    anchors = [anchor for anchor in cached if anchor.keys() == probe.keys()]
    moved = [{name for name in probe if not torch.equal(anchor[name], probe[name])} for anchor in anchors]
    assert {"network._fc.weight", "network._fc.bias"} in moved
    for anchor in anchors:
        assert not torch.equal(anchor["network._bn0.weight"], pretrained["network._bn0.weight"])
        assert torch.equal(anchor["network._bn0.running_mean"], pretrained["network._bn0.running_mean"])
        assert torch.equal(anchor["network._bn0.running_var"], pretrained["network._bn0.running_var"])


def test_a_diverging_training_is_said_and_not_hidden(workplace):
    done = workplace.command("--method", "adamw", "--lr", "1e30", "--epochs", "3", "--out", "runs/diverged")
    assert done.status == 0
    assert "1 diverged" in done.text
    result = json.loads(Path("runs/diverged/metrics.json").read_text())["results"]["adamw-seed0"]
    assert result["diverged"]
    assert result["losses"][-1] is None
