"""The closed form of FTP: reference runs, limits, its gradient, 16-bit weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import project, radius_gradient, row_norm

from ..support.draws import gaps, normal, seeds, several, shapes, tenths
from ..support.problems import start
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


STEPS = 8
norms = st.sampled_from(["mars", "l2"])
ways = st.sampled_from(["paper", "exact"])


@given(seed=seeds, shape=shapes.filter(lambda s: 0 not in s), norm=norms, share=st.floats(0.05, 1.5))
def test_exact_is_autograd_through_the_step_and_paper_too_when_all_rows_are_clipped(seed, shape, norm, share):
    w0, c, g = normal(seed, [shape] * 3)
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


BASES = {
    "sgd": lambda: hft.sgd(lr=0.1),
    "momentum": lambda: hft.sgd(lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda: hft.adam(lr=0.1),
}
bases = st.sampled_from(sorted(BASES))


def run(opt, first, seed, absent=frozenset(), steps=STEPS):
    """Params and state after each step of gradients that turn around; ``absent``: of which tensor, in which step."""
    params, state = first, opt.init(first)
    drifts = normal(seed, [w.shape for w in first.values()])
    for t in range(steps):
        noise = normal(seed + 1 + t, [w.shape for w in first.values()])
        sign = 1 if t < steps // 2 else -1
        grads = {
            name: None if (t, i) in absent else sign * drift + 0.3 * x
            for i, (name, drift, x) in enumerate(zip(first, drifts, noise, strict=True))
        }
        before, (params, state) = params, opt.update(grads, state, params)
        yield grads, before, params, state


def tensors(seed, sizes, off=0.0):
    """Anchors, and weights off them."""
    anchors, ways = normal(seed, sizes), normal(seed + 500, sizes)
    return (
        {str(i): w0 for i, w0 in enumerate(anchors)},
        {str(i): w0 + off * d for i, (w0, d) in enumerate(zip(anchors, ways, strict=True))},
    )


@given(
    seed=seeds, sizes=several, base=bases, norm=norms, gradient=ways, off=st.sampled_from([0.0, 0.3]),
    kappa=tenths(0, 10), radius_lr=tenths(0, 5), radius_start=st.none() | st.floats(0, 1e40), absent=gaps(4, STEPS),
)  # fmt: skip
def test_a_radius_stays_between_its_floor_and_the_largest_norm_and_every_row_within_it(
    seed, sizes, base, norm, gradient, off, kappa, radius_lr, radius_start, absent
):
    """Weights are W0 + min(gamma / n, 1) c of the state. With kappa 0 a radius shrinks by the clip alone."""
    (w0, first), radii = tensors(seed, sizes, off), {}
    opt = hft.ftp(BASES[base](), w0, norm, kappa, radius_lr, gradient, radius_start=radius_start)
    for grads, before, params, state in run(opt, first, seed, absent):
        for name, w in params.items():
            if grads[name] is None:
                assert torch.equal(w, before[name])
                continue
            radius, n, c = state.radius[name], state.norms[name], state.deviation[name]
            assert 1e-8 <= radius <= max(n.tolist(), default=1e-8)
            # Each entry of W0 + s c is rounded three times.
            slack = 4 * torch.finfo(torch.float64).eps * (w.abs().sum() + w0[name].abs().sum())
            assert (row_norm(w - w0[name], norm) - 1e-8 <= radius + slack).all()
            assert ((w - project(w0[name] + c, w0[name], radius, norm)).abs() <= slack).all()
            assert kappa or radius >= min(radii.get(name, 0.0), max(n.tolist(), default=0.0))
            radii[name] = radius


@given(seed=seeds, sizes=several, base=bases, norm=norms, start=tenths(0, 30))
def test_without_a_radius_lr_the_radius_is_the_least_that_was_and_what_the_anchor_leaves_out_is_the_bases(
    seed, sizes, base, norm, start
):
    """The clip at the largest norm is for good."""
    w0, first = tensors(seed, sizes)
    held = {name: x for name, x in w0.items() if name != "0"}
    ftp = hft.ftp(BASES[base](), {**held, "0": None}, norm, radius_lr=0.0, radius_start=start)
    box = hft.projected(BASES[base](), held, norm=norm, radius=0.0)
    least = dict.fromkeys(held, max(start, 1e-8))
    for (*_, got, state), (*_, boxed, _), (*_, free, _) in zip(
        *(run(opt, first, seed) for opt in (ftp, box, BASES[base]())), strict=True
    ):
        assert torch.equal(got["0"], free["0"])
        assert torch.equal(boxed["0"], free["0"])
        assert all(torch.equal(boxed[name], w0[name]) for name in held)
        least = {name: min(x, max(state.norms[name].tolist(), default=1e-8)) for name, x in least.items()}
        assert {name: x.item() for name, x in state.radius.items()} == least


@given(seed=seeds, sizes=several, base=bases, norm=norms, gradient=ways, absent=gaps(4, STEPS))
def test_a_tensor_makes_its_steps_alone_whatever_the_others_do(seed, sizes, base, norm, gradient, absent):
    """It ends, radius and its moments too, where a run of its own steps ends, to the last bit."""
    w0, first = tensors(seed, sizes)
    whole = hft.ftp(BASES[base](), w0, norm, radius_lr=0.05, gradient=gradient)
    *_, (_, _, params, state) = made = [*run(whole, first, seed, absent)]
    for name in w0:
        own = [grads[name] for grads, *_ in made if grads[name] is not None]
        opt, w = hft.ftp(BASES[base](), {name: w0[name]}, norm, radius_lr=0.05, gradient=gradient), {name: first[name]}
        alone = opt.init(w)
        for g in own:
            w, alone = opt.update({name: g}, alone, w)
        assert torch.equal(w[name], params[name])
        assert torch.equal(alone.radius[name], state.radius[name])
        counts = [x[name] if isinstance(x, dict) else x for x in (state.radius_opt.step, alone.radius_opt.step)]
        assert counts == [len(own)] * 2


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


def test_the_first_radius_is_no_hparam():
    """Whose derivative would be lost, with torch's own warning about a number of a tensor that requires grad."""
    start_at = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match="radius_start is no hparam, so it has no derivative; give it detached"):
        hft.ftp(hft.sgd(), {"w": torch.ones(2, 2)}, radius_start=start_at)  # pyright: ignore
    hft.ftp(hft.sgd(), {"w": torch.ones(2, 2)}, radius_start=start_at.detach())  # pyright: ignore
