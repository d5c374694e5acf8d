"""The Triton execution against the pure definitions, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops
from hyperopt_ftp.kernels import triton as execution
from hyperopt_ftp.kernels.layers import SGD, Layers

from ..support.reference_runs import runs
from .interpreter import triton_kernels
from .problems import ADAMW, FEW, LR, SHAPES, Case, run, tensors


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched."""
    seen: list[str] = []
    launch = execution._Run.launch
    monkeypatch.setattr(execution._Run, "launch", lambda run, *names: (seen.extend(names), launch(run, *names))[0])
    return seen


def test_every_shape_in_one_call_of_four_launches(launches: list):
    case = Case(SHAPES, free=(4,), zero=(3,))
    run(execution, case, steps=1)
    assert launches == ["partials", "radii", "move", "clip"]
    for t in (2, 3):
        grads = case.draw()
        execution.step_(case.layers, case.base, case.ball)
        case.pure_step(grads)
        case.compare(t)
    assert len(launches) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_addresses_that_are_no_multiple_of_16_bytes(dtype: torch.dtype):
    def layout(i: int, x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    run(execution, Case([(3, 16), (10, 128), (2, 1024), (1, 4096)], dtype, layout=layout))


@pytest.mark.parametrize("options", [{}, {"lean": True}, {"dtype": torch.bfloat16}, {"free": (0,)}])
def test_rows_and_layers_of_many_turns(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_kernels, "BLOCK", triton_kernels.tl.constexpr(4))
    run(execution, Case([(6, 9), (9,), (5, 8)], **options))


def test_halves_make_a_whole():
    """sgd without momentum by hand between the halves is the fused step, to the last bit where W' is."""
    torch.manual_seed(1)
    fused = Case(FEW, base=SGD(LR, 0.0, 0.0, 0.0, False))
    torch.manual_seed(1)
    halves = Case(FEW, base=SGD(LR, 0.0, 0.0, 0.0, False))
    for t in range(3):
        torch.manual_seed(t)
        fused.draw()
        torch.manual_seed(t)
        halves.draw()
        execution.step_(fused.layers, fused.base, fused.ball)
        packed = execution.radii_(halves.layers, halves.ball)
        for w, g in zip(halves.layers.weights, halves.layers.grads, strict=True):
            w.sub_(torch.tensor(LR, dtype=torch.float32) * g)
        execution.project_(halves.layers, packed, halves.ball)
    torch._foreach_add_(halves.layers.steps, 3.0)  # a base counts its own
    assert all(torch.equal(x, y) for x, y in zip(tensors(fused.layers), tensors(halves.layers), strict=True))


@pytest.mark.parametrize(("index", "dtype"), [(0, torch.float64), (2, torch.float32)])  # the interpreter is slow
def test_the_classes_match_the_reference_runs(index: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Float64 as all executions; float32 by a step's roundings, as in tests/torch_optim."""
    monkeypatch.setattr(ops, "BEST", {"cpu": ("triton", "triton")})
    run_ = list(runs())[index]
    params = {n: torch.nn.Parameter(w.clone().to(dtype)) for n, w in run_.anchor().items()}
    make = hft.FTPAdamW if run_.adam else hft.FTPSGD
    opt = make(params.items(), exclude="head.*", kappa=run_.kappa, fused=True, **run_.kwargs)
    for t in range(min(8, run_.about["steps"])):
        for name, p in params.items():
            p.grad = run_.gradient(name, t, p)
        opt.step()
        weights, radii = run_.expected(t)
        small = 4 * 6e-8 * max(1.0, max(w.abs().max().item() for w in weights.values())) * (t + 1)
        atol = 1e-10 if dtype == torch.float64 else small + 1e-2 * (t + 1) * 2 * small / run_.kwargs["lr"]
        for name, p in params.items():
            assert (p.detach() - weights[name]).abs().max() <= atol
        if dtype == torch.float64:
            assert opt.radii() == pytest.approx({n: r.item() for n, r in radii.items()}, abs=1e-10)
    assert opt.execution == "triton"


def test_the_kernels_find_each_column_of_layers():
    """The launcher's table by the positions that the kernels read; the moments are its last columns."""
    columns = {
        "W": "weights", "G": "grads", "STEP": "steps", "W0": "anchors", "C": "deviations", "N": "norms",
        "RADIUS": "radii", "RM": "radius_exp_avgs", "RV": "radius_exp_avg_sqs", "RADIUS_STEP": "radius_steps",
    }  # fmt: skip
    assert (*columns.values(), "moments") == Layers._fields
    layers = Case([(3, 16)]).layers
    expected = {name: getattr(layers, field)[0] for name, field in columns.items()}
    expected |= dict(zip(("M", "V"), (moment[0] for moment in layers.moments), strict=True))
    row = execution.table(layers, ADAMW, (3,))[0].tolist()
    at = {name: getattr(triton_kernels, name).value for name in (*expected, "X", "ROWS", "COLS", "FIRST")}
    sizes = {"X": 0, "ROWS": 3, "COLS": 16, "FIRST": 0}
    assert {name: row[at[name]] for name in at} == {name: x.data_ptr() for name, x in expected.items()} | sizes
    assert len(row) == triton_kernels.COLUMNS.value
