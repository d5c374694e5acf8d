"""Which execution runs where, without a GPU: CPU tensors that say they are on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import cpu

OPS = "hyperopt_ftp.kernels.ops"


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{OPS}.INSTALLED", frozenset({"numba", "triton"}))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "device", property(lambda _: torch.device("cuda")), raising=False)


def group(**flags: Any) -> list[dict[str, Any]]:
    return [{"params": [torch.nn.Parameter(torch.zeros(2, 3))], **flags}]


def own(**flags: Any) -> str:
    return hft.FTPAdamW(group(), **flags).execution


def around(wrap: Any = hft.FTP, **flags: Any) -> str:
    return wrap(torch.optim.SGD(group(**flags), lr=0.1)).execution


def test_on_a_gpu_triton_runs_only_where_it_is_asked_for(on_a_gpu: None):
    assert own() == own(fused=False) == "foreach"
    assert own(foreach=False) == "single"
    assert own(fused=True) == "triton"
    assert around() == around(fused=True) == "foreach"  # a base asks for its own kernels


def test_rules_on_many_tensors_have_never_run_on_a_gpu_and_take_the_bases_word_there(on_a_gpu: None):
    for flags, name in (({}, "single"), ({"foreach": False}, "single"), ({"foreach": True}, "pieces")):
        assert around(hft.L2SP, **flags) == name


def test_asked_for_where_it_cannot_run(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{OPS}.INSTALLED", frozenset({"numba"}))
    with pytest.raises(RuntimeError, match="fused=True cannot run: the package triton is not installed"):
        own(fused=True)


def test_on_a_cpu_numba_is_the_default():
    assert own() == own(fused=True) == around() == around(fused=True) == "fused_cpu"


def test_without_numba_the_log_says_once_that_a_step_could_be_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(f"{OPS}.INSTALLED", frozenset({"triton"}))
    cpu.say_slower.cache_clear()
    with caplog.at_level("INFO", "hyperopt_ftp"):
        assert own(foreach=True) == "foreach"
        assert caplog.messages == []  # as was asked for
        assert own() == own() == around() == "foreach"
    cpu.say_slower.cache_clear()
    assert caplog.messages == [
        "a step on the CPU takes about twice as long as it could, since the package numba is not installed "
        "(pip install 'hyperopt-ftp[cpu]')"
    ]


def test_one_place_turns_it_back(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{OPS}.UNASKED", frozenset({"cpu", "cuda"}))
    assert own() == around(fused=True) == "triton"
