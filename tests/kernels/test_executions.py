"""The executions on many tensors against the pure definitions: all options, all classes of shapes, all dtypes.

Triton runs in its interpreter: no GPU is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import cpu, foreach, triton

from . import interpreter as interpreter
from .problems import FEW, LR, RADIUS_LR, SGD, SHAPES, AdamW, Amp, Ball, Case, run, tensors

pytest.importorskip("numba")
EXECUTIONS = {"foreach": foreach, "fused_cpu": cpu, "triton": triton}


@pytest.fixture(params=EXECUTIONS.values(), ids=EXECUTIONS)
def execution(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("execution", [foreach, cpu], ids=["foreach", "fused_cpu"])
def test_every_shape_in_one_call(execution):
    """Of Triton in test_triton.py, by the number of its launches."""
    run(execution, Case(SHAPES, free=(4,), zero=(3,)))


CASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "float64": {"dtype": torch.float64},
    "bfloat16, decay": {"dtype": torch.bfloat16, "base": AdamW(LR, 0.9, 0.99, 1e-8, 0.1)},
    "decay": {"base": AdamW(LR, 0.9, 0.99, 1e-8, 0.1)},
    "amsgrad": {"amsgrad": True},
    "sgd": {"base": SGD(LR, 0.0, 0.0, False)},
    "momentum, decay": {"base": SGD(LR, 0.9, 0.1, False)},
    "nesterov": {"base": SGD(LR, 0.9, 0.0, True)},
    "float64, sgd": {"dtype": torch.float64, "base": SGD(0.1 / 3, 0.9, 0.01, False)},
    "exact": {"ball": Ball(RADIUS_LR, 1.0, "mars", True)},
    "kappa 0": {"ball": Ball(RADIUS_LR, 0.0, "mars", False)},
    "kappa 0.5": {"ball": Ball(RADIUS_LR, 0.5, "mars", False)},
    "l2": {"ball": Ball(RADIUS_LR, 1.0, "l2", False)},
    "l2, exact, float64": {"ball": Ball(RADIUS_LR, 1.0, "l2", True), "dtype": torch.float64},
    "lean": {"lean": True},
    "anchors of three dtypes": {"anchor_dtypes": (torch.float32, torch.bfloat16, torch.float16)},
    "zero anchors": {"zero": tuple(range(len(FEW)))},
    "zero and other anchors, bfloat16": {"zero": (0, 3), "dtype": torch.bfloat16},
    "unconstrained": {"free": tuple(range(len(FEW)))},
    "unconstrained and not, bfloat16": {"free": (1, 4), "dtype": torch.bfloat16},
    "maximize": {"amp": Amp(maximize=True)},
    "amp": {"amp": Amp(False, torch.tensor([1024.0]), torch.tensor([0.0])), "dtype": torch.bfloat16},
    "amp, maximize": {"amp": Amp(True, torch.tensor(3.0), torch.tensor(0.0))},
    "tensor lr": {"base": AdamW(torch.tensor(LR), 0.9, 0.99, 1e-8, 0.1)},
    "tensor lr, sgd": {"base": SGD(torch.tensor(LR), 0.9, 0.0, False)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_options(execution, options: dict[str, Any]):
    run(execution, Case(FEW, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_working_precision(execution, dtype: torch.dtype):
    case = Case(FEW, dtype)
    case.layers.grads[:] = [g.float() for g in case.layers.grads]
    run(execution, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_and_contiguous(execution, dtype: torch.dtype):
    def layout(i: int, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if i == 0 else x

    run(execution, Case([(5, 3, 3, 3), (5, 3, 3, 3)], dtype, layout=layout))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("base", [AdamW(LR, 0.9, 0.99, 1e-8, 0.1), SGD(LR, 0.9, 0.0, False)], ids=["adamw", "sgd"])
def test_nan_and_infinity_are_where_the_reference_has_them(execution, base: AdamW | SGD, value: float):
    with np.errstate(all="ignore"):  # the interpreter's
        case = Case([(5, 123), (2, 2051), (3, 16), (4, 8)], base=base)
        run(execution, case, steps=1)
        for t, spoil in ((2, {0: value, 1: value, 3: value}), (3, {})):
            grads = case.draw(spoil)
            execution.step_(case.layers, base, case.ball)
            case.pure_step(grads)
            for k, w in case.params.items():
                i = int(k)
                for mine, theirs in [
                    (case.layers.weights[i], w),
                    (case.layers.deviations[i], case.state.deviation[k]),
                    (case.layers.norms[i], case.state.norms[k]),
                    (case.layers.radii[i], case.state.radius[k]),
                ]:
                    assert torch.equal(mine.isnan(), theirs.isnan()), f"step {t}, layer {i}"
                    assert torch.equal(mine.isinf(), theirs.isinf()), f"step {t}, layer {i}"
        assert case.layers.weights[0].isnan().any()
        assert not case.layers.weights[2].isnan().any()


def test_a_nan_among_the_norms_does_not_reach_the_radius(execution):
    """The row that was the largest turns to NaN: the others, which are smaller, do not clip the radius."""
    case = Case([(4,), (4, 8)])
    run(execution, case, steps=1)
    for radius in (case.layers.radii[1], case.state.radius["1"]):
        radius.fill_(10.0)
    case.layers.weights[1][case.layers.norms[1].argmax()] = float("nan")
    case.params["1"] = case.layers.weights[1].to(case.wide)
    with np.errstate(all="ignore"):
        grads = case.draw()
        execution.step_(case.layers, case.base, case.ball)
    case.pure_step(grads)
    case.compare(2)
    assert case.layers.norms[1].isnan().sum() == 1
    assert case.layers.radii[1] > case.layers.norms[1].nan_to_num().max()


def test_found_inf_changes_nothing(execution):
    found = torch.tensor(0.0)
    case = Case(FEW, amp=Amp(False, None, found))
    run(execution, case, steps=2)
    before = [x.clone() for x in tensors(case.layers)]
    found.fill_(1.0)
    execution.step_(case.layers, case.base, case.ball, case.amp)
    assert all(map(torch.equal, tensors(case.layers), before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_changed_from_outside_are_respected(execution, dtype: torch.dtype):
    case = Case(FEW, dtype)
    run(execution, case, steps=2)
    for i, w in enumerate(case.layers.weights):
        w.mul_(1.25)
        case.params[str(i)] = w.clone().to(case.wide)
    grads = case.draw()
    execution.step_(case.layers, case.base, case.ball)
    case.pure_step(grads)
    case.compare(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_halves_around_a_base_of_another_kind(execution, dtype: torch.dtype):
    """The reference sees weights that have been moved already."""
    case = Case(FEW, dtype, base=SGD(LR, 0.0, 0.0, False))
    still = hft.Optimizer(
        lambda params, hparams=None: (), lambda grads, state, params, hparams=None: (params, state), {}
    )
    anchor = {str(i): w0.to(case.real) for i, w0 in enumerate(case.layers.anchors)}
    case.optimizer = hft.ftp(still, anchor, radius_lr=RADIUS_LR)
    case.state = case.state._replace(base=())
    for t in range(1, 4):
        grads = case.draw()
        packed = execution.radii_(case.layers, case.ball)
        assert packed.shape == (len(FEW),)
        for i, w in enumerate(case.layers.weights):
            w.sub_(LR * torch.randn(w.shape).sign().to(dtype) * (torch.rand(w.shape) < 0.7))
            case.params[str(i)] = w.clone().to(case.wide)
        execution.project_(case.layers, packed, case.ball)
        case.pure_step(grads)
        case.state = case.state._replace(base=hft.sgd().init(case.params))  # a base counts its own steps
        case.compare(t)
        case.state = case.state._replace(base=())
        case.follow()


@pytest.mark.parametrize("steps", [0, 1, 699, 99_999, 999_999])
def test_bias_corrections(execution, steps: int):
    """Relative error at most 1e-6 at any step; 1 - 0.999 in float32 alone would be off by 1e-5."""
    base = AdamW(LR, 0.9, 0.999, 1e-8, 0.0)
    case = Case([(3, 16)], base=base)
    case.layers.steps[0].fill_(steps)
    for column in case.layers.moments:
        column[0].fill_(0.25)
    # From 0 and around 0, so that c is the direction itself, with no rounding of W in it.
    for x in (case.layers.weights[0], case.layers.anchors[0]):
        x.zero_()
    case.draw()
    execution.step_(case.layers, base, case.ball)
    moved = case.layers.deviations[0].double()
    m, v = case.layers.moments[0][0].double(), case.layers.moments[1][0].double()
    t = steps + 1
    truth = -LR / (1 - 0.9**t) * m / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(moved, truth, atol=0, rtol=1e-6)


def test_buckets_of_foreach_change_nothing(monkeypatch: pytest.MonkeyPatch):
    results, made = [], foreach.buckets
    counts: list[int] = []
    monkeypatch.setattr(foreach, "buckets", lambda layers: counts.append(len(found := made(layers))) or found)
    for size in (foreach.CPU_BUCKET, 8):
        monkeypatch.setattr(foreach, "CPU_BUCKET", size)
        torch.manual_seed(3)
        case = Case(FEW)
        run(foreach, case)
        results.append((counts[-1], [x.clone() for x in tensors(case.layers)]))
    (one, whole), (many, pieces) = results
    assert one == 1 < many
    assert all(map(torch.equal, whole, pieces))
