"""Which execution runs where, without a GPU: CPU tensors that say they are on one."""

from __future__ import annotations

import linecache
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops
from hyperopt_ftp.torch_optim.execution import backends
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


# -- what is slow and could be fused ---------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without Numba, and models that are large at six weights."""
    monkeypatch.setattr(ops, "INSTALLED", frozenset())
    monkeypatch.setattr(backends, "MANY", 6)


def stepped(opt: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()
    return opt


BY_FOREACH = (
    r"steps on this CPU by foreach, .* the package numba is not installed \(pip install 'hyperopt-ftp\[cpu\]'\); .*"
    "foreach=True"
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hft.FTPAdamW([weights()]),
        lambda: hft.FTPSGD([weights()]),
        lambda: hft.FTP(torch.optim.SGD([weights()])),
        lambda: hft.MARSSP(torch.optim.SGD([weights()]), radius=1.0),
    ],
)
def test_a_large_model_without_numba_warns_at_its_first_step(slow: None, make: Any):
    opt = make()
    with pytest.warns(UserWarning, match=f"{type(opt).__name__} {BY_FOREACH}") as caught:
        stepped(opt)
    assert [w.filename for w in caught] == [__file__]
    stepped(opt)  # once: another warning would be an error here


def test_the_warning_is_of_the_line_that_steps_whatever_torch_puts_around(slow: None):
    opt = hft.FTPAdamW([weights()])
    torch.optim.lr_scheduler.ConstantLR(opt)
    with pytest.warns(UserWarning, match=BY_FOREACH) as caught:
        stepped(opt)
    assert linecache.getline(caught[0].filename, caught[0].lineno).strip() == "opt.step()"


def test_an_option_that_the_base_lacks_is_not_named(slow: None):
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, closure: Any = None) -> None:
            pass

    with pytest.warns(UserWarning, match=r"hyperopt-ftp\[cpu\]'\)$"):
        stepped(hft.FTP(Plain([weights()])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: hft.FTPAdamW([weights()], foreach=True),
        lambda: hft.FTPAdamW([weights()], foreach=False),
        lambda: hft.FTPAdamW([weights()], fused=False),
        lambda: hft.FTP(torch.optim.SGD([weights()], foreach=True)),
        lambda: hft.FTPAdamW([torch.nn.Parameter(torch.zeros(5))]),  # a small one
        lambda: hft.FTPAdamW([torch.nn.Parameter(torch.zeros(3, 2).t())]),  # which Numba would not change
        lambda: hft.L2SP(torch.optim.SGD([weights()])),  # without kernels
    ],
)
def test_nothing_is_said_where_it_is_meant_or_of_no_use(slow: None, make: Any):
    stepped(make())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about its internals
def test_a_compiled_step_says_nothing(slow: None):
    opt = hft.FTPAdamW([weights()])
    opt.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    torch.compile(opt.step, backend="eager")()
    assert opt.execution == "foreach"


def test_numba_that_compiles_nothing_counts_as_none(slow: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "INSTALLED", frozenset({"numba"}))
    monkeypatch.setattr(ops, "JIT_DISABLED", True)
    opt = hft.FTPAdamW([weights()])
    with pytest.warns(UserWarning, match="by foreach, .*: NUMBA_DISABLE_JIT is set"):
        stepped(opt)
