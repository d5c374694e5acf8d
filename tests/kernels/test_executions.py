"""The executions on many tensors against the pure definitions: all options, all classes of shapes, all dtypes.

Triton runs in its interpreter: no GPU is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import cpu, foreach, triton

from ..support.draws import seeds
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


BASES = st.one_of(
    st.builds(AdamW, st.just(LR), st.just(0.9), st.just(0.99), st.just(1e-8), st.sampled_from([0.0, 0.1])),
    st.builds(SGD, st.just(LR), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.1]), st.just(False)),
    st.builds(SGD, st.just(LR), st.just(0.9), st.sampled_from([0.0, 0.1]), st.just(True)),
)
BALLS = st.builds(
    Ball, st.just(RADIUS_LR), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["mars", "l2"]), st.booleans()
)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a :class:`Case` that go together."""
    dtype, base = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])), draw(BASES)
    some, full = st.sets(st.integers(0, len(FEW) - 1)).map(tuple), dtype == torch.float32
    scale = draw(st.sampled_from([None, torch.tensor([1024.0]), *([torch.tensor(3.0)] if full else [])]))
    return {
        "dtype": dtype,
        "base": base._replace(lr=torch.tensor(LR)) if draw(st.booleans()) else base,
        "ball": draw(BALLS),
        "amp": Amp(draw(st.booleans()), scale, None if scale is None else torch.tensor(0.0)),
        "amsgrad": isinstance(base, AdamW) and draw(st.booleans()),
        "lean": full and draw(st.booleans()),
        "free": draw(some),
        "zero": draw(some),
        "anchor_dtypes": draw(st.sampled_from([(), (torch.float32, torch.bfloat16, torch.float16)])) if full else (),
    }


@settings(max_examples=40)
@given(execution=st.sampled_from(sorted(EXECUTIONS)), options=problems(), seed=seeds, wide=st.booleans())
def test_an_execution_is_the_pure_function(execution: str, options: dict[str, Any], seed: int, wide: bool):
    """``wide``: 16-bit weights with gradients in working precision."""
    torch.manual_seed(seed)
    case = Case(FEW, **options)
    if wide and case.dtype.itemsize == 2:
        case.layers.grads[:] = [g.float() for g in case.layers.grads]
    run(EXECUTIONS[execution], case)


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
