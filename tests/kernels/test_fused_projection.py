"""The fused projection equals the pure one in its value and in every derivative, under autograd and torch.func."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperopt_ftp import fused_projection
from hyperopt_ftp.anchored import projections
from hyperopt_ftp.kernels import cpu

FUNC = torch.func
SHAPES = [(3, 5), (7,), (), (2, 3, 2, 2), (2, 9000)]


def problem(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    w, w0 = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    norms = projections.row_norm(w - w0)
    return w, w0, norms.median() * 0.9


@pytest.fixture
def ran(monkeypatch):
    calls = []
    project = cpu.project_
    monkeypatch.setattr(cpu, "project_", lambda *a: (calls.append(1), project(*a))[1])
    return calls


@pytest.mark.parametrize("norm", projections.NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_all_derivatives(shape, norm, ran):
    """Float64 sums of at most 9,000 terms in another order: 1e-12 leaves three digits to spare."""
    inputs = problem(shape)

    def loss(project):
        return lambda w, w0, r: (project(w, w0, r, norm) ** 3).sum()

    mine, pure = loss(fused_projection.project), loss(projections.project)

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    same(fused_projection.project(*inputs, norm), projections.project(*inputs, norm))
    assert ran, "the kernel has to run"
    every = (0, 1, 2)
    same(FUNC.grad(mine, every)(*inputs), FUNC.grad(pure, every)(*inputs))
    tangents = tuple(torch.randn_like(x) for x in inputs)
    same(FUNC.jvp(mine, inputs, tangents), FUNC.jvp(pure, inputs, tangents))
    second = [FUNC.grad(lambda w, r, f=f: FUNC.grad(f, 2)(w, inputs[1], r), (0, 1)) for f in (mine, pure)]
    same(second[0](inputs[0], inputs[2]), second[1](inputs[0], inputs[2]))
    over = [FUNC.jvp(FUNC.grad(f, every), inputs, tangents) for f in (mine, pure)]
    same(*over)
    radii = inputs[2] * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    each = [FUNC.vmap(FUNC.grad(f, every), (None, None, 0))(inputs[0], inputs[1], radii) for f in (mine, pure)]
    same(*each)


def test_autograd_to_the_second_order():
    w, w0, radius = (x.requires_grad_() for x in problem((3, 4)))
    assert torch.autograd.gradcheck(fused_projection.project, (w, w0, radius))
    assert torch.autograd.gradgradcheck(fused_projection.project, (w, w0, radius))


@given(
    seed=st.integers(0, 9999), shape=st.lists(st.integers(0, 6), max_size=3), norm=st.sampled_from(projections.NORMS)
)
def test_random_shapes(seed, shape, norm):
    inputs = problem(shape, seed) if 0 not in shape else (torch.randn(shape), torch.randn(shape), torch.tensor(1.0))
    torch.testing.assert_close(
        fused_projection.project(*inputs, norm), projections.project(*inputs, norm), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_and_layouts_take_the_pure_function(dtype, ran):
    w, w0, radius = (x.to(dtype) for x in problem((3, 5)))
    assert torch.equal(fused_projection.project(w, w0, radius), projections.project(w, w0, radius))
    w, w0, radius = problem((3, 5))
    assert torch.equal(fused_projection.project(w.t(), w0.t(), radius), projections.project(w.t(), w0.t(), radius))
    assert not ran


def test_inputs_are_left_alone():
    inputs = problem((3, 5))
    before = [x.clone() for x in inputs]
    fused_projection.project(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_wrong_arguments():
    w, w0, radius = problem((3, 5))
    with pytest.raises(ValueError, match=r"one shape and radius one element, got \(3, 5\), \(3, 4\) and \(\)"):
        fused_projection.project(w, w0[:, :4], radius)
    with pytest.raises(ValueError, match="norm must be one of"):
        fused_projection.project(w, w0, radius, "l1")
