"""Data-parallel hypergradients on two and four processes, and rounds that go on with another number of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback

import pytest
import torch
import torch.distributed as dist

import hyperopt_ftp as hft

from ..support.processes import finish, start
from . import hypergradient_faults as faults
from . import hypergradients as checks
from .launch import ROOT, launch, torchrun

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

EVERYWHERE = [
    checks.strategies,
    checks.zero_order,
    checks.in_float32,
    checks.sums_of_16_bits,
    checks.the_sum_of_shards,
    checks.a_branch_in_one_process,
    checks.shards_of_very_different_sizes,
    checks.tuning,
]
#: Two processes first: four go on with what they have saved.
CHECKS = {
    2: [
        *EVERYWHERE,
        checks.in_bfloat16,
        checks.transforms,
        checks.batches_of_vmap_inside_one_shard,
        checks.own_shards_are_differentiated,
        checks.dropout_of_its_own,
        checks.few_collectives,
        checks.radii_of_tpgm,
        checks.towers,
        faults.other_params,
        checks.a_constant_in_one_process,
        checks.an_empty_shard_of_a_loss_in_another_dtype,
        checks.memory_of_each_process,
        faults.an_error_in_one_process,
        faults.a_count_in_one_process,
        faults.vmap_fails_in_one_process,
        faults.nan_in_one_process,
        faults.wrong_uses,
        checks.tuning_begins,
    ],
    4: [*EVERYWHERE, checks.groups, checks.tuning_goes_on],
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], str]:
    """What went wrong, by number of processes and name of the check; all are run before the first test."""
    folder = tmp_path_factory.mktemp("hypergradients")
    found = {(n, name): said for n, each in CHECKS.items() for name, said in launch(n, each, folder).items()}
    try:
        checks.tuning_goes_on(folder, whole=True)
        found[1, "tuning_goes_on"] = ""
    except Exception:
        found[1, "tuning_goes_on"] = traceback.format_exc()
    return found


@pytest.mark.parametrize(
    ("processes", "check"),
    [(n, check.__name__) for n, each in CHECKS.items() for check in each] + [(1, "tuning_goes_on")],
)
def test_in_every_process(outcome, processes, check):
    if outcome[processes, check]:
        pytest.fail(outcome[processes, check], pytrace=False)


def test_who_is_left_says_that_another_process_has_ended(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.dying"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    both = [start([*command, rank, f"{tmp_path}/store"], cwd=ROOT, env=environment) for rank in ("0", "1")]
    (said, errors), _ = map(finish, both)
    assert [process.returncode for process in both] == [1, -signal.SIGKILL]
    assert said == "begins\n"
    assert "RuntimeError: process 0 of 2 has lost the others of data_parallel, in a value of the loss" in errors


def test_the_example_goes_on_with_another_number_of_processes(tmp_path):
    def rounds(until: int, processes: int, folder: str) -> str:
        arguments = ["--out", str(tmp_path / folder), "--rounds", str(until), "--every", "2"]
        return torchrun("examples.tune_data_parallel", arguments, processes, tmp_path)

    rounds(6, 1, "straight")
    assert "going on" not in rounds(4, 2, "other")
    assert "going on from round 4" in rounds(6, 3, "other")  # of whose shards none is as large as the others
    found, expected = (torch.load(tmp_path / name / "rounds.pt", weights_only=True) for name in ("other", "straight"))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_the_example_without_torchrun_says_how():
    command = [sys.executable, "-m", "examples.tune_data_parallel"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torchrun --standalone --nproc-per-node 2 -m examples.tune_data_parallel" in done.stderr


def test_without_a_process_group_it_says_how():
    with pytest.raises(RuntimeError, match=r"needs a process group: call torch.distributed.init_process_group\(\)"):
        hft.data_parallel(checks.held_out)(checks.params(), checks.batch(0))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"loss": 3}, TypeError, "loss must be a function"),
        ({"loss": lambda params: 0.0}, ValueError, r"loss must take \(params, batch\).*takes 1"),
        ({"loss": lambda params, x, h, z: 0.0}, ValueError, r"loss must take \(params, batch\).*takes 4"),
        ({"loss": torch.nn.Linear(2, 2)}, TypeError, "the module Linear; call it inside one"),
        ({"loss": hft.data_parallel(checks.loss)}, TypeError, "data-parallel already"),
        ({"loss": checks.loss, "reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', got 'avg'"),
        ({"loss": checks.loss, "size": 12}, TypeError, "size must be a function of the batch, got 12"),
        ({"loss": checks.loss, "redution": "sum"}, TypeError, "did you mean 'reduction'"),
    ],
)
def test_wrong_arguments(arguments, kind, text):
    with pytest.raises(kind, match=text):
        hft.data_parallel(**arguments)
