"""The FSDP2 example under torchrun: alone, with processes that are killed, and going on in another number of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from .launch import torchrun

pytest.importorskip("sklearn")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
STEPS, EVERY = 30, 10


def finetuned(module: str, out: Path, processes: int, *options: str) -> str:
    arguments = ["--out", str(out), "--steps", str(STEPS), "--every", str(EVERY)]
    return torchrun(module, arguments, processes, out.parent, *options)


def final(out: Path) -> dict[str, torch.Tensor | float]:
    """Everything in the last checkpoint: weights, radii, moments, counts, fingerprints, the schedule."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = out / "whole.pt"
    dcp_to_torch_save(out / f"step-{STEPS}", file)
    pairs, _ = pytree.tree_flatten_with_path(torch.load(file, weights_only=True))
    return {pytree.keystr(path): leaf for path, leaf in pairs if isinstance(leaf, (torch.Tensor, int, float))}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    said = finetuned("examples.finetune_fsdp2", out, 2)
    assert "fine-tuned" in said
    assert "radii: 0.weight" in said
    return out


def test_killed_processes_are_started_again_and_end_bit_for_bit(straight, tmp_path):
    said = finetuned("tests.distributed.elastic", tmp_path / "run", 2, "--max-restarts", "3")
    assert said.count("going on from step 10") == 1
    assert said.count("going on from step 20") == 1
    expected, found = final(straight), final(tmp_path / "run")
    assert len(found) > 60
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_four_processes_go_on_from_what_two_have_saved(straight, tmp_path):
    shutil.copytree(straight / "step-20", tmp_path / "run" / "step-20")
    said = finetuned("examples.finetune_fsdp2", tmp_path / "run", 4)
    assert "going on from step 20" in said
    expected, found = final(straight), final(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=name)


def test_without_torchrun_it_says_how():
    done = subprocess.run([sys.executable, "-m", "examples.finetune_fsdp2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torchrun --standalone --nproc-per-node 2 -m examples.finetune_fsdp2" in done.stderr
