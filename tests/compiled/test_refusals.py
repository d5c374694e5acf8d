"""What cannot be compiled, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

import hyperopt_ftp as hft

from ..support.problems import batches, loss, start
from .strategies import CHEAP, CLOSE, PAIRS, every_strategy, slope

F64 = torch.float64


def branches(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) if p["w"].sum() > 0 else 2 * loss(p, x)


HELD = torch.zeros(4, dtype=F64)


def writes(p: Any, x: Tensor) -> Tensor:
    HELD.add_(1.0)
    return loss(p, x) + (HELD * p["b"]).sum()


TRACKED = torch.ones(4, dtype=F64, requires_grad=True)


def uses_a_stranger(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) + (TRACKED * p["b"]).sum()


class Cubed(torch.autograd.Function):
    """Compiled, torch takes its backward for a constant, and the second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *grads):
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


def cubes(p: Any, x: Tensor) -> Tensor:
    return loss(p, x) + Cubed.apply(p["b"]).square().sum()


@every_strategy
@pytest.mark.parametrize(
    ("train_loss", "error", "text"),
    [
        (cubes, RuntimeError, "train_loss goes through Cubed, a torch.autograd.Function.* leave out compile=True"),
        (
            branches,
            RuntimeError,
            "the (training|tangent) program cannot be compiled: Data-dependent branching.*without branch",
        ),
        (writes, RuntimeError, "train_loss writes in place"),
        (uses_a_stranger, ValueError, "train_loss uses a tensor of shape"),
    ],
    ids=["cubed", "branches", "writes", "stranger"],
)
def test_losses_that_cannot_be(name: str, train_loss: Any, error: Any, text: str):
    for _ in range(2):  # the error is no matter of once
        with pytest.raises(error, match=f"(?s){text}"):
            slope(train_loss, batches(3), PAIRS[name][0](compile=CHEAP))
        assert HELD.sum() == 0


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return 2 * x


@every_strategy
@pytest.mark.parametrize(
    ("cut", "how"),
    [
        (lambda x: x.data, r"data or detach_\(\)"),
        (lambda x: (2 * x).detach_(), r"data or detach_\(\)"),
        (without_grad, r"torch.no_grad\(\)"),
        (Tensor.detach, None),
    ],
    ids=["data", "detach_", "no_grad", "detach"],
)
@pytest.mark.filterwarnings("ignore:train_loss detaches")
def test_a_constant_that_a_program_would_differentiate_is_refused(name: str, cut: Any, how: str | None):
    def train_loss(p: Any, x: Tensor) -> Tensor:
        return loss(p, x) + (cut(p["b"]) * p["b"]).sum()

    kind, plain = PAIRS[name]
    if how is None or (name == "unroll" and "no_grad" in how):
        want = slope(train_loss, batches(3), plain)
        torch.testing.assert_close(slope(train_loss, batches(3), kind(compile=CHEAP)), want, rtol=CLOSE, atol=0)
    else:
        with pytest.raises(RuntimeError, match=f"takes something for constant by {how}"):
            slope(train_loss, batches(3), kind(compile=CHEAP))


@every_strategy
def test_what_compiled_steps_do_not_do(name: str):
    kind = PAIRS[name][0]
    narrow, outer = start(torch.float16), lambda p: loss(p, batches(1)[0])
    with pytest.raises(ValueError, match="float16 params would vanish; leave it out"):
        hft.hypergradient(hft.sgd(), loss, outer, narrow, batches(2), "lr", strategy=kind(compile=CHEAP))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="does not run under autocast"):
        slope(loss, batches(2), kind(compile=CHEAP))
    with pytest.raises(ValueError, match="compile must be .*a backend such as .*did you mean 'inductor'"):
        kind(compile="inducto")
    with pytest.raises(TypeError, match="compile must be True, False or .*, got 1"):
        kind(compile=1)


def test_what_compiled_unroll_does_not_do():
    for keeps in ({"checkpoint": False}, {"checkpoint": "log"}, {"offload": True}, {"memory": 2**20}):
        with pytest.raises(ValueError, match="keeps points on the device, .* and no graphs"):
            hft.Unroll(compile=True, **keeps)


def test_a_loss_that_is_another_each_time_is_refused():
    class Data:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, k: int) -> Tensor:
            return torch.rand(5, 3, dtype=F64)

    with pytest.raises(RuntimeError, match="when the step is computed again"):
        slope(loss, Data(), hft.Unroll(compile=CHEAP))  # pyright: ignore[reportArgumentType]


def test_scan_is_where_it_was(scan: Any):
    assert scan.scan is not None
    files = (Path(hft.__file__).parent).rglob("*.py")
    assert [x.name for x in files if "higher_order" in x.read_text()] == ["scan.py"]


REASONS = {
    "compiler": r"there is no C\+\+ compiler .*CXX",
    "torch": "torch 2.12.1 cannot compile a loop of steps; 2.13 can",
    "scan": "torch .* cannot compile a loop of steps; 2.13 can",
}


@pytest.mark.parametrize("reason", REASONS)
@every_strategy
def test_where_nothing_can_be_compiled_it_says_why_and_runs_the_steps(
    name: str, reason: str, monkeypatch: Any, scan: Any, programs: list[str]
):
    def missing(*given: Any) -> Any:
        raise InvalidCxxCompiler

    where, what, value = {
        "compiler": (cpp_builder, "get_cpp_compiler", missing),
        "torch": (torch, "__version__", "2.12.1"),
        "scan": (scan, "scan", None),
    }[reason]
    kind, eager = PAIRS[name]
    monkeypatch.setattr(where, what, value)
    with pytest.warns(UserWarning, match=f"compile=True has no effect: {REASONS[reason]}"):
        got = slope(loss, batches(3), kind(compile=True))
    assert torch.equal(got, slope(loss, batches(3), eager))
    assert not programs


def test_where_torch_cannot_compile_it_says_so():
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    compiled = hft.Unroll(compile=CHEAP)

    def end(lr: Tensor) -> Tensor:
        return hft.train(hft.sgd(), loss, start(), batches(2), hparams={"lr": lr}, strategy=compiled).params["b"]

    def around(p: Any, x: Any, h: Tensor) -> Tensor:
        return loss(p, x) * end(h).sum()

    hparams = {"loss": torch.tensor(0.1, dtype=F64)}
    for text, action in (
        ("that torch has batched", lambda: torch.autograd.functional.jacobian(end, lr, vectorize=True)),
        (
            "inside a dispatch mode",
            lambda: hft.hypergradient(
                hft.sgd(), around, lambda p: p["b"].sum(), start(), batches(1), "loss", hparams=hparams
            ),
        ),
    ):
        with pytest.raises(RuntimeError, match=f"compile=True: a compiled step cannot run .*{text}"):
            action()
