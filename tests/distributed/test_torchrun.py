"""Examples under torchrun: alone, with processes that are killed, and going on in another number of them."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from .launch import torchrun

datasets = pytest.importorskip("sklearn.datasets")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

STEPS, EVERY = 30, 10
#: Attempt: process, step after which it is killed. No checkpoint is of that step.
DEATHS = {"0": ("1", 14), "1": ("0", 27)}


def die(step: int) -> None:
    if DEATHS.get(os.environ["TORCHELASTIC_RESTART_COUNT"]) == (os.environ["RANK"], step):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where a process finds the digits and nothing else of scikit-learn, which takes 1.5 s to import in each of 18."""
    package = tmp_path_factory.mktemp("digits") / "sklearn"
    package.mkdir()
    for name, values in zip("xy", datasets.load_digits(return_X_y=True), strict=True):
        np.save(package / name, values)
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def load_digits(return_X_y):\n"
        "    return tuple(np.load(Path(__file__).with_name(f'{name}.npy')) for name in 'xy')\n"
    )
    return [package.parent]


def finetuned(module: str, out: Path, processes: int, *options: str, path: list[Path]) -> str:
    arguments = ["--out", str(out), "--steps", str(STEPS), "--every", str(EVERY)]
    return torchrun(module, arguments, processes, out.parent, *options, path=path)


def final(out: Path) -> dict[str, torch.Tensor | float]:
    """Everything in the last checkpoint: weights, radii, moments, counts, fingerprints, the schedule."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = out / "whole.pt"
    dcp_to_torch_save(out / f"step-{STEPS}", file)
    pairs, _ = pytree.tree_flatten_with_path(torch.load(file, weights_only=True))
    return {pytree.keystr(path): leaf for path, leaf in pairs if isinstance(leaf, (torch.Tensor, int, float))}


def test_killed_processes_start_again_bit_for_bit_and_four_go_on_from_what_two_have_saved(tmp_path, path):
    straight = tmp_path / "straight" / "run"
    straight.parent.mkdir()
    said = finetuned("examples.finetune_fsdp2", straight, 2, path=path)
    assert "fine-tuned" in said
    assert "radii: 0.weight" in said
    expected = final(straight)
    assert len(expected) > 60

    said = finetuned("tests.distributed.test_torchrun", tmp_path / "killed", 2, "--max-restarts", "3", path=path)
    assert said.count("going on from step 10") == 1
    assert said.count("going on from step 20") == 1
    shutil.copytree(straight / "step-20", tmp_path / "four" / "step-20")
    assert "going on from step 20" in finetuned("examples.finetune_fsdp2", tmp_path / "four", 4, path=path)
    for name, tolerance in (("killed", 0), ("four", 1e-9)):
        found = final(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance, msg=f"{name}: {key}")


def test_tuning_goes_on_with_another_number_of_processes(tmp_path, path):
    def rounds(until: int, processes: int, folder: str) -> str:
        arguments = ["--out", str(tmp_path / folder), "--rounds", str(until), "--every", "2"]
        return torchrun("examples.tune_data_parallel", arguments, processes, tmp_path, path=path)

    rounds(6, 1, "straight")
    assert "going on" not in rounds(4, 2, "other")
    assert "going on from round 4" in rounds(6, 3, "other")  # of whose shards none is as large as the others
    found, expected = (torch.load(tmp_path / name / "rounds.pt", weights_only=True) for name in ("other", "straight"))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("example", ["examples.finetune_fsdp2", "examples.tune_data_parallel"])
def test_without_torchrun_it_says_how(example, monkeypatch):
    monkeypatch.setattr("sys.argv", [example])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match=f"torchrun --standalone --nproc-per-node 2 -m {example}"):
        importlib.import_module(example).main()


if __name__ == "__main__":
    from examples.finetune_fsdp2 import main

    main(die)
