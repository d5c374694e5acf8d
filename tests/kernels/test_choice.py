"""Which execution runs where, without a GPU: CPU tensors that say they are on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops
from hyperopt_ftp.torch_optim.execution.backends import pick


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "INSTALLED", frozenset({"numba", "triton"}))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "device", property(lambda _: torch.device("cuda")), raising=False)


def weights() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2, 3))


def picked(strict: bool = True, **flags: Any) -> str:
    return pick({"params": [weights()], **flags}, strict).name


def test_on_a_gpu_triton_runs_only_where_it_is_asked_for(on_a_gpu: None):
    assert picked() == "foreach"
    assert picked(fused=None, foreach=None) == "foreach"
    assert picked(fused=False) == "foreach"
    assert picked(foreach=False) == "single"
    assert picked(fused=True) == "triton"
    assert hft.FTPAdamW([weights()]).execution == "foreach"
    assert hft.FTPAdamW([weights()], fused=True).execution == "triton"


def test_a_base_asks_for_its_own_kernels(on_a_gpu: None):
    assert picked(strict=False, fused=True) == "foreach"
    assert hft.FTP(torch.optim.SGD([weights()], foreach=None)).execution == "foreach"


def test_rules_on_many_tensors_have_never_run_on_a_gpu_and_take_the_bases_word_there(on_a_gpu: None):
    for flags, name in (({}, "single"), ({"foreach": False}, "single"), ({"foreach": True}, "foreach")):
        assert hft.L2SP(torch.optim.SGD([weights()], lr=0.1, **flags)).execution == name


def test_triton_has_to_be_asked_for(on_a_gpu: None):
    assert ops.why_not([weights()]) == "on cuda it has to be asked for, by fused=True"


def test_asked_for_where_it_cannot_run(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "INSTALLED", frozenset({"numba"}))
    with pytest.raises(RuntimeError, match="fused=True cannot run: the package triton is not installed"):
        picked(fused=True)


def test_on_a_cpu_numba_is_the_default():
    assert picked() == picked(fused=True) == picked(strict=False, fused=True) == "fused_cpu"


def test_one_place_turns_it_back(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "UNASKED", frozenset({"cpu", "cuda"}))
    assert picked() == picked(strict=False, fused=True) == "triton"
    assert ops.why_not([weights()]) is None
