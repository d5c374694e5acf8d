"""The laws of the projection onto the ball of a radius, whole or row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import project, row_norm

from ..support.draws import dtypes, normal, seeds, shapes

FLOOR = 1e-8  # in each norm

norms = st.sampled_from(["mars", "l2"])
radii = st.floats(0, 10)


def points(shape: tuple[int, ...], seed: int, count: int = 2, size: float = 3.0) -> list[Tensor]:
    """The anchor, and points around it."""
    w0, *ways = normal(seed, [shape] * count)
    return [w0, *(w0 + size * way for way in ways)]


def one(x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(x, dtype=dtype)


def rounding(*xs: Tensor) -> float:
    """Of a norm of what was projected: each entry of W0 + s c is rounded three times, and the sum over them."""
    return 8 * torch.finfo(torch.float64).eps * sum(x.abs().sum().item() for x in xs)


@given(shape=shapes, norm=norms, seed=seeds)
def test_row_norm_is_its_definition(shape, norm, seed):
    (d,) = normal(seed, [shape])
    n = row_norm(d, norm)
    if norm == "l2":
        want = [math.sqrt(sum(x * x for x in d.flatten().tolist()))]
    elif d.ndim < 2:
        want = [sum(abs(x) for x in d.flatten().tolist())]
    else:
        want = [sum(abs(x) for x in row.flatten().tolist()) for row in d]
    assert n.tolist() == pytest.approx([x + FLOOR for x in want], rel=1e-14)


@given(shape=shapes, norm=norms, seed=seeds, radius=radii)
def test_projected_rows_lie_in_the_ball_and_a_second_projection_moves_them_by_the_floor(shape, norm, seed, radius):
    w0, w = points(shape, seed)
    inside = project(w, w0, one(radius), norm)
    n, slack = row_norm(inside - w0, norm) - FLOOR, rounding(w0, w)
    assert (n <= radius + slack).all()
    again = project(inside, w0, one(radius), norm)
    # The scale is radius / (n + floor) where n is radius: a relative floor / (radius + floor), and no more.
    assert ((again - inside).abs() <= FLOOR / (radius + FLOOR) * (inside - w0).abs() + slack).all()


@given(shape=shapes, norm=norms, seed=seeds, radius=radii)
def test_no_point_of_the_ball_is_nearer_in_the_norm_of_the_ball(shape, norm, seed, radius):
    """l2: nearest. mars: one of the nearest in L1, row by row; in the Euclidean distance others may be nearer."""
    w0, w, other = points(shape, seed, 3)
    inside, point = (project(x, w0, one(radius), norm) for x in (w, other))
    # |c| (1 - r / (|c| + floor)) <= |c| - r + floor, and |c| - r <= |c - x| for any x of the ball.
    assert (row_norm(w - inside, norm) <= row_norm(w - point, norm) + FLOOR + rounding(w0, w, other)).all()


@given(shape=shapes, norm=norms, seed=seeds, radius=radii, apart=st.sampled_from([1e-3, 0.1, 3.0]))
def test_two_points_move_no_further_apart_in_l2_and_at_most_twice_as_far_in_l1(shape, norm, seed, radius, apart):
    """The radial map has the slopes r floor / (n + floor)^2 and r / (n + floor), and in L1 the sum of both counts."""
    w0, a = points(shape, seed)
    b = a + apart * normal(seed + 1, [shape])[0]
    before, after = (
        row_norm(x, norm) - FLOOR
        for x in (a - b, project(a, w0, one(radius), norm) - project(b, w0, one(radius), norm))
    )
    assert (after <= (1 if norm == "l2" else 2) * before + rounding(w0, a, b)).all()


def test_in_l1_two_points_may_move_apart():
    w0, a, b = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1]])
    moved = project(a, w0, torch.tensor(1.0)) - project(b, w0, torch.tensor(1.0))
    assert row_norm(moved) > 1.8 * row_norm(a - b)


@given(shape=shapes, norm=norms, seed=seeds, dtype=dtypes)
def test_radius_0_is_the_anchor_and_infinity_the_weights_in_any_dtype(shape, norm, seed, dtype):
    w0, w = (x.to(dtype) for x in points(shape, seed))
    for radius, want in ((0.0, w0), (math.inf, w0 + (w - w0))):
        found = project(w, w0, one(radius, dtype), norm)
        assert (found.dtype, found.shape) == (dtype, w.shape)
        assert torch.equal(found, want)


def settled(radius, w, w0):
    """What a projection makes of its radius after an update: at most the largest norm."""
    opt = hft.projected(hft.sgd(lr=0.0), w0, radius=math.inf)
    _, state = opt.update(w, opt.init(w), w)
    return opt.settle({**opt.hparams, "radius": radius}, state)["radius"][""]


def test_derivatives_at_ties_and_at_infinity():
    w, w0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    n, infinity = row_norm(w), one(math.inf)

    def scales(r, w=w):
        return project(w, w0, r) / w.detach()

    # A tie counts as clipped: 1/2 + 1/3, without the row of norm 1.
    assert grad(lambda r: scales(r).sum())(n[1]).item() == pytest.approx(1 / 2 + 1 / 3)
    assert grad(lambda r: scales(r).sum())(infinity).item() == 0
    assert grad(lambda w: (scales(infinity, w) * w.detach()).sum())(w).flatten().tolist() == [1, 1, 1]
    assert scales(n[1]).flatten().tolist() == pytest.approx([1, 1, 2 / 3])
    assert grad(lambda r: settled(r, w, w0))(n[2]).item() == 1
    assert settled(n[2] + 1, w, w0) == n[2]


@given(shape=shapes, norm=norms, seed=seeds, radius=st.floats(1e-3, 10))
def test_the_radius_that_is_left_is_at_most_the_largest_norm_and_a_zero_deviation_has_a_derivative(
    shape, norm, seed, radius
):
    """Of a tensor without rows it is the floor."""
    w0, w = points(shape, seed)
    assert grad(lambda w: project(w, w0, one(1.0), norm).sum())(w0).isfinite().all()
    top = max(row_norm(w - w0).tolist(), default=FLOOR)
    assert settled(one(radius), w, w0).item() == pytest.approx(min(radius, top), rel=1e-14)
