"""The main job from end to end on few emoji: what it leaves, and how it ends when it is stopped."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.classification.model import Classifier
from experiments.classification.study import STUDY
from experiments.common import checkpoint

from ..support.processes import Patience, finish, start
from .running import ran

ROOT = Path(__file__).resolve().parents[2]
# 48 emoji: 16 for each part, so 2 steps in an epoch of fine-tuning and 2 in one of the anchor.
TINY = (
    "--limit",
    "48",
    "--batch-size",
    "8",
    "--epochs",
    "1",
    "--anchor-epochs",
    "1",
    "--seeds",
    "0",
    "--device",
    "cpu",
)


def test_what_a_run_leaves(cache):
    out = Path("runs/finished")
    done = ran(STUDY, *TINY, "--out", str(out))
    assert (done.status, "FTPAdamW minus AdamW" in done.text) == (0, True)
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    steps = {f"steps/{method}-seed0.csv" for method in ("adamw", "ftp", "linear")}
    figures = {"trade-off.png", "pictures.png"}
    assert files == figures | steps | {"metrics.json", "report.md", "checkpoint.pt", "radii/ftp-seed0.json"}
    content = json.loads((out / "metrics.json").read_text())
    assert content["environment"]["packages"]["torch"]
    assert content["data"]["items"] == {"pretrain": 16, "finetune": 16, "test": 16}
    for result in content["results"].values():
        assert set(result["scores"]) == {"Twemoji", "OpenMoji", "Noto outline"}
        assert result["id"] == result["scores"]["Twemoji"]
        assert result["ood"] == pytest.approx((result["scores"]["OpenMoji"] + result["scores"]["Noto outline"]) / 2)
    report = (out / "report.md").read_text()
    assert all(name in report for name in ("FTPAdamW", "linear probe", *figures))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    again = ran(STUDY, *TINY, "--out", str(out))
    assert (again.status, again.begun, "FTPAdamW minus AdamW" in again.text) == (0, [], True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    # The last training was that of the linear probe: it moves the head alone, and BatchNorm keeps its statistics.
    probe, pretrained = checkpoint.load(out / "checkpoint.pt")["training"]["model"], Classifier(8, 64, 0.0).state_dict()
    # The cache is one of the session: another file's task may have left its anchor there.
    cached = [checkpoint.load(file)["model"] for file in cache.glob("anchor-*.pt")]
    anchors = [anchor for anchor in cached if anchor.keys() == probe.keys()]
    moved = [{name for name in probe if not torch.equal(anchor[name], probe[name])} for anchor in anchors]
    assert {"network._fc.weight", "network._fc.bias"} in moved
    for anchor in anchors:
        assert not torch.equal(anchor["network._bn0.weight"], pretrained["network._bn0.weight"])
        for name in ("network._bn0.running_mean", "network._bn0.running_var"):
            assert torch.equal(anchor[name], pretrained[name])


def test_ctrl_c_says_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.tuning.towers", "--tasks", "digits", "--steps", "100000"]
    with start(
        [*command, "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background, a shell has made them ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            patience = Patience([process.pid])
            while not (tmp_path / "run/metrics.json").exists():
                assert process.poll() is None
                assert not patience.lost()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = finish(process)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert errors.strip() == "Stopped. What is finished is kept: run the same command again to go on."
