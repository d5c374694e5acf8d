"""The closed form of FTP: reference runs, limits, its gradient, 16-bit weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import project, radius_gradient, row_norm

from ..support.cases import ANCHOR
from ..support.problems import batches, largest_difference, loss, start, train
from ..support.reference_runs import Run, runs

RUNS = list(runs())


def pure(run: Run):
    base = (hft.adamw if run.adam else hft.sgd)(**run.kwargs)
    opt = hft.ftp(base, run.constrained(), kappa=run.kappa)
    params = run.anchor()
    state = opt.init(params)
    for t in range(run.about["steps"]):
        grads = {n: run.gradient(n, t, w) for n, w in params.items()}
        params, state = opt.update(grads, state, params)
        yield t, params, state.radius


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.index))
def test_weights_and_radii_equal_the_reference_runs(run: Run):
    for t, params, radii in pure(run):
        weights, expected = run.expected(t)
        torch.testing.assert_close(params, weights, rtol=0, atol=1e-10)
        torch.testing.assert_close(radii, expected, rtol=0, atol=1e-10)


def random_step(seed: int, shape: list[int]):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))


@given(
    seed=st.integers(0, 9999),
    shape=st.lists(st.integers(1, 5), max_size=3),
    norm=st.sampled_from(["mars", "l2"]),
    share=st.floats(0.05, 1.5),
)
def test_exact_is_autograd_through_the_step_and_paper_too_when_all_rows_are_clipped(seed, shape, norm, share):
    w0, c, g = random_step(seed, shape)
    n = row_norm(c, norm)
    gamma = share * n.max()
    autograd = torch.func.grad(lambda r: (g * project(w0 + c, w0, r, norm)).sum())(gamma)
    exact = radius_gradient(g, c, n, gamma, "exact")
    torch.testing.assert_close(exact, autograd, rtol=1e-10, atol=1e-12)
    paper = radius_gradient(g, c, n, gamma, "paper")
    if (gamma <= n).all():
        torch.testing.assert_close(paper, exact, rtol=1e-12, atol=1e-14)
    unbounded = torch.func.grad(lambda r: (g * (w0 + (r / n).reshape(-1, *[1] * (c.ndim - 1)) * c)).sum())(gamma)
    torch.testing.assert_close(paper, unbounded.reshape(()), rtol=1e-10, atol=1e-12)


def test_the_first_step_stays_at_the_anchor_and_the_second_moves_the_radius_by_0_744_mu():
    w0 = {"w": torch.zeros(1, 2, dtype=torch.float64)}
    opt = hft.ftp(hft.sgd(lr=1.0), w0, radius_lr=0.1)
    g = {"w": torch.tensor([[-1.0, 0.0]], dtype=torch.float64)}
    params, state = opt.update(g, opt.init(w0), w0)
    assert state.radius["w"].item() == 1e-8
    assert params["w"].abs().max() <= 1e-8
    _, state = opt.update(g, state, params)
    m, v = 0.1 / (1 - 0.9**2), (1e-3 / (1 - 0.999**2)) ** 0.5
    assert state.radius["w"].item() == pytest.approx(0.1 * m / v, rel=1e-6)
    assert m / v == pytest.approx(0.744, abs=1e-3)


def test_radius_lr_0_is_the_projection_with_a_fixed_radius():
    w0, data = start(), batches(10)
    # From the anchor every radius is, and stays, 1e-8.
    got, _ = train(hft.ftp(hft.adamw(lr=0.1), w0, radius_lr=0.0), None, w0, data)
    want, _ = train(hft.projected(hft.adamw(lr=0.1), w0, radius=1e-8), None, w0, data)
    assert largest_difference(got, want) <= 1e-15
    assert 0 < largest_difference(got, w0) <= 1e-8


def test_names_absent_from_the_anchor_are_unconstrained():
    w0, data, base = start(), batches(5), hft.sgd(lr=0.1)
    for opt in (hft.ftp(base, {"w": w0["w"], "b": None}), hft.projected(base, {"w": w0["w"]}, radius=0.0)):
        params, state = w0, opt.init(w0)
        for x in data:
            grads = torch.func.grad(loss)(params, x)
            new, state = opt.update(grads, state, params)
            assert torch.equal(new["b"], torch.sub(params["b"], grads["b"], alpha=0.1))
            params = new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_c_is_the_master_copy_of_16_bit_weights(dtype):
    """300 steps of a thousandth of an ulp: the stored weights alone would never move."""
    w0 = {"w": torch.full((1, 4), 1.0, dtype=dtype)}
    ulp = torch.finfo(dtype).eps
    opt = hft.ftp(hft.sgd(lr=1.0), w0, radius_lr=1.0, kappa=0.0)
    params, state = w0, opt.init(w0)
    g = {"w": torch.full((1, 4), -ulp / 100, dtype=dtype)}
    for _ in range(300):
        params, state = opt.update(g, state, params)
    assert state.deviation["w"].dtype == torch.float32
    moved = params["w"].double() - 1
    assert (moved - 3 * ulp).abs().max() <= ulp  # 300 / 100 ulps, up to the last rounding and the first step

    # Weights that somebody changed are taken as they are.
    changed = {"w": torch.full((1, 4), 2.0, dtype=dtype)}
    new, _ = opt.update({"w": torch.zeros(1, 4, dtype=dtype)}, state, changed)
    assert new["w"].float().sub(1).abs().max() > 2 * ulp


def test_radius_and_moments_are_float32_for_16_bit_weights():
    w0 = start(torch.bfloat16)
    state = hft.ftp(hft.adamw(), w0).init(w0)
    kept = (state.radius, state.deviation, state.norms, state.radius_opt.exp_avg, state.base.exp_avg_sq)
    assert {x.dtype for part in kept for x in part.values()} == {torch.float32}


@pytest.mark.parametrize("gaps", [[{"b"}, set(), set(), set()], [set(), {"w"}, {"b", "w"}, set(), {"b"}]])
def test_layers_make_their_steps_alone_where_gradients_are_none(gaps: list[set[str]]):
    """A layer ends, radius and its moments too, where a run of its own steps ends."""
    whole, params = hft.ftp(hft.adam(lr=0.1), ANCHOR, radius_lr=0.05), start()
    state, given = whole.init(params), {"w": [], "b": []}
    for x, missing in zip(batches(len(gaps)), gaps, strict=True):
        grads: dict = torch.func.grad(loss)(params, x)
        for name in grads.keys() - missing:
            given[name].append(grads[name])
        params, state = whole.update({n: None if n in missing else g for n, g in grads.items()}, state, params)
    for name, own in given.items():
        opt, w = hft.ftp(hft.adam(lr=0.1), {name: ANCHOR[name]}, radius_lr=0.05), {name: start()[name]}
        alone = opt.init(w)
        for g in own:
            w, alone = opt.update({name: g}, alone, w)
        assert torch.equal(w[name], params[name])
        assert torch.equal(alone.radius[name], state.radius[name])
        assert state.radius_opt.step[name] == alone.radius_opt.step == len(own)


def test_the_first_radius_is_no_hparam():
    """Whose derivative would be lost, with torch's own warning about a number of a tensor that requires grad."""
    start_at = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match="radius_start is no hparam, so it has no derivative; give it detached"):
        hft.ftp(hft.sgd(), {"w": torch.ones(2, 2)}, radius_start=start_at)  # pyright: ignore
    hft.ftp(hft.sgd(), {"w": torch.ones(2, 2)}, radius_start=start_at.detach())  # pyright: ignore
