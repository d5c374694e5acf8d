from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import project, row_norm

FLOOR = 1e-8  # in each norm

shapes = st.lists(st.integers(1, 5), max_size=4)
norms = st.sampled_from(["mars", "l2"])


def pair(shape: list[int], seed: int, size: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    w0 = torch.randn(shape, generator=g, dtype=torch.float64)
    return w0 + size * torch.randn(shape, generator=g, dtype=torch.float64), w0


@given(shape=shapes, norm=norms, seed=st.integers(0, 999))
def test_row_norm_is_its_definition(shape, norm, seed):
    d, _ = pair(shape, seed)
    n = row_norm(d, norm)
    if norm == "l2":
        want = [math.sqrt(sum(x * x for x in d.flatten().tolist()))]
    elif d.ndim < 2:
        want = [sum(abs(x) for x in d.flatten().tolist())]
    else:
        want = [sum(abs(x) for x in row.flatten().tolist()) for row in d]
    assert n.tolist() == pytest.approx([x + FLOOR for x in want], rel=1e-14)


@given(shape=shapes, norm=norms, seed=st.integers(0, 999), radius=st.floats(0, 10))
def test_projected_rows_lie_in_the_ball_and_keep_their_direction(shape, norm, seed, radius):
    w, w0 = pair(shape, seed, size=3.0)
    gamma = torch.tensor(radius, dtype=torch.float64)
    inside = project(w, w0, gamma, norm)
    n = row_norm(inside - w0, norm) - FLOOR
    assert (n <= radius + 1e-14 * (1 + n)).all()  # rounding of W0 + c
    again = project(inside, w0, gamma, norm)
    # A second projection shrinks a row by the floor in its norm, and no more.
    assert (again - inside).abs().max() <= FLOOR / (radius + FLOOR) * (inside - w0).abs().max() + 1e-14


@given(shape=shapes, norm=norms, seed=st.integers(0, 999))
def test_limits_of_the_radius(shape, norm, seed):
    w, w0 = pair(shape, seed)
    zero, infinity = torch.tensor(0.0, dtype=torch.float64), torch.tensor(math.inf, dtype=torch.float64)
    assert torch.equal(project(w, w0, zero, norm), w0)
    assert torch.equal(project(w, w0, infinity, norm), w0 + (w - w0))


def test_l2_is_the_nearest_point_of_the_ball():
    w, w0 = pair([4], 0, size=5.0)
    gamma = torch.tensor(1.0, dtype=torch.float64)
    found = project(w, w0, gamma, "l2")
    for seed in range(200):
        other = pair([4], seed)[0] - pair([4], seed)[1]
        other = w0 + other / other.norm()
        assert (found - w).norm() <= (other - w).norm() + 1e-7  # 1e-8 in the norm


def settled(radius, w, w0):
    """What a projection makes of its radius after an update: at most the largest norm."""
    opt = hft.projected(hft.sgd(lr=0.0), w0, radius=math.inf)
    _, state = opt.update(w, opt.init(w), w)
    return opt.settle({**opt.hparams, "radius": radius}, state)["radius"][""]


def test_derivatives_at_ties_and_at_infinity():
    w, w0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    n, infinity = row_norm(w), torch.tensor(math.inf, dtype=torch.float64)

    def scales(r, w=w):
        return project(w, w0, r) / w.detach()

    # A tie counts as clipped: 1/2 + 1/3, without the row of norm 1.
    assert grad(lambda r: scales(r).sum())(n[1]).item() == pytest.approx(1 / 2 + 1 / 3)
    assert grad(lambda r: scales(r).sum())(infinity).item() == 0
    assert grad(lambda w: (scales(infinity, w) * w.detach()).sum())(w).flatten().tolist() == [1, 1, 1]
    assert scales(n[1]).flatten().tolist() == pytest.approx([1, 1, 2 / 3])
    assert grad(lambda r: settled(r, w, w0))(n[2]).item() == 1
    assert settled(n[2] + 1, w, w0) == n[2]


def test_a_zero_deviation_has_a_finite_derivative_and_no_rows_a_radius():
    w0, one = torch.zeros(2, 3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for norm in ("mars", "l2"):
        assert grad(lambda w, norm=norm: project(w, w0, one, norm).sum())(w0).isfinite().all()
    for shape in ((0, 4), (4, 0), (0,)):
        w = torch.zeros(shape)
        assert project(w, w, torch.tensor(1.0)).shape == w.shape
        assert settled(torch.tensor(1.0), w, w).item() == pytest.approx(FLOOR)
