"""hyper: the theorem of the library, and the limits of a tuned optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import batches, central_differences, largest_difference, loss, start, train

BASES = {
    "adamw": lambda: hft.adamw(lr=0.05, weight_decay=0.1),
    "sgd": lambda: hft.sgd(lr=0.1, momentum=0.9),
    "rmsprop": lambda: hft.rmsprop(lr=0.02, alpha=0.9),
}


@given(
    seed=st.integers(0, 9999),
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3),
    base=st.sampled_from(sorted(BASES)),
    gradient=st.sampled_from(["exact", "paper"]),
    kappa=st.sampled_from([0.0, 0.5, 1.0]),
    norm=st.sampled_from(["mars", "l2"]),
    off=st.booleans(),
)
# With one row, or with kappa 0, which map the radius is pulled back through hardly matters. Here it does.
@example(seed=0, shapes=[[4, 3]], base="sgd", gradient="paper", kappa=1.0, norm="mars", off=False)
@example(seed=0, shapes=[[4, 3]], base="sgd", gradient="exact", kappa=1.0, norm="mars", off=False)
@example(seed=1, shapes=[[4, 2, 2], [3]], base="adamw", gradient="paper", kappa=1.0, norm="mars", off=True)
@example(seed=1, shapes=[[4, 2, 2], [3]], base="adamw", gradient="exact", kappa=1.0, norm="mars", off=True)
def test_ftp_is_hyper_of_projected(seed, shapes, base, gradient, kappa, norm, off):
    """Step for step: weights and radii, while radii grow (the first half) and shrink (the second)."""
    g = torch.Generator().manual_seed(seed)
    w0 = {str(i): torch.randn(s, generator=g, dtype=torch.float64) for i, s in enumerate(shapes)}
    params = {k: v + off * 0.3 * torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in w0.items()}
    target = {k: v + torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in w0.items()}

    bounded = hft.projected(BASES[base](), w0, norm)
    through = None if gradient == "exact" else hft.projected(BASES[base](), w0, norm, bounded=False)
    radius_rule = hft.damped(hft.adam(lr=0.02), kappa)
    nested = hft.hyper(bounded, by=radius_rule, over="radius", through=through)
    closed = hft.ftp(BASES[base](), w0, norm, kappa=kappa, radius_lr=0.02, gradient=gradient)

    p, q = params, params
    s, u = closed.init(p), nested.init(q)
    for t in range(16):
        noise = {k: 0.3 * torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in w0.items()}
        aim = target if t < 8 else w0
        p, s = closed.update({k: p[k] - aim[k] + noise[k] for k in w0}, s, p)
        q, u = nested.update({k: q[k] - aim[k] + noise[k] for k in w0}, u, q)
        assert largest_difference(p, q) <= 1e-12
        assert largest_difference(s.radius, u.tuned["radius"]) <= 1e-12


def test_the_two_have_the_same_outer_derivatives():
    """Nothing is detached on either side: d loss / d lr through ten steps agrees."""
    w0, data = start(), batches(10)

    def through_closed(lr):
        opt = hft.ftp(hft.sgd(lr=0.1), w0, radius_lr=0.05, gradient="exact")
        return loss(train(opt, opt.hparams | {"lr": lr}, w0, data)[0], data[0])

    def through_nested(lr):
        opt = hft.hyper(hft.projected(hft.sgd(lr=0.1), w0), by=hft.damped(hft.adam(lr=0.05)), over="radius")
        hparams = opt.hparams | {"base": opt.hparams["base"] | {"lr": lr}}
        return loss(train(opt, hparams, w0, data)[0], data[0])

    lr = torch.tensor(0.1, dtype=torch.float64)
    a, b = torch.func.grad(through_closed)(lr), torch.func.grad(through_nested)(lr)
    assert a.item() == pytest.approx(b.item(), rel=1e-10)
    assert a.item() == pytest.approx(central_differences(through_closed, lr)[0].item(), rel=1e-6)


def test_the_pullback_is_the_gradient_through_the_last_step():
    params, (x, y) = start(), batches(2)
    opt = hft.hyper(hft.adamw(lr=0.1, eps=1e-2), by=hft.sgd(lr=1.0), over=("lr", "betas", "weight_decay"))
    state = opt.init(params)
    first, state = opt.update(torch.func.grad(loss)(params, x), state, params)
    _, after = opt.update(torch.func.grad(loss)(first, y), state, first)

    base = hft.adamw(lr=0.1, eps=1e-2)

    def outer(tuned):
        new, _ = base.update(torch.func.grad(loss)(params, x), base.init(params), params, base.hparams | tuned)
        return loss(new, y)

    tuned = {k: base.hparams[k] for k in ("lr", "betas", "weight_decay")}
    h = torch.func.grad(outer)(tuned)
    for name in tuned:  # by = sgd(lr=1): the step is the hypergradient, kept in the domain
        for now, old, slope in zip(*map(tree.leaves, (after.tuned[name], tuned[name], h[name])), strict=True):
            want = (old - slope).clamp(min=0, max=1 - 2**-53 if name == "betas" else None)
            torch.testing.assert_close(now, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("by", [hft.sgd(lr=0.0), hft.adam(lr=0.0)])
def test_a_hyper_learning_rate_of_0_is_the_base(by):
    params, data, base = start(), batches(8), hft.adamw(lr=0.1)
    tuned, _ = train(hft.hyper(base, by=by, over="lr"), None, params, data)
    assert largest_difference(tuned, train(base, None, params, data)[0]) == 0


def test_the_first_update_moves_nothing_whatever_by_is():
    params, base = start(), hft.sgd(lr=0.1)
    opt = hft.hyper(base, by=hft.adamw(lr=0.5, weight_decay=0.9), over="lr")
    _, state = opt.update(params, opt.init(params), params)
    assert state.tuned["lr"].item() == 0.1
    assert state.by.step.item() == 1


def test_maps_inside_hyper_are_differentiable_and_chained():
    opt = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.05), over="lr", constrain={"lr": "log"})
    params, data = start(), batches(7)
    assert opt.init(params).tuned["lr"].item() == 0.1

    def outer(h):
        return loss(train(opt, h, params, data)[0], data[0])

    got = torch.stack(tree.leaves(torch.func.grad(outer)(opt.hparams)))
    torch.testing.assert_close(got, torch.stack(central_differences(outer, opt.hparams)), rtol=1e-6, atol=1e-10)
    plain = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.05), over="lr")
    moved, free = (train(x, None, params, data[:2])[1].tuned["lr"].item() for x in (opt, plain))
    assert moved == pytest.approx(0.1 * math.exp((free - 0.1) * 0.1), rel=1e-12)  # d / d log lr is lr d / d lr


AROUND = {
    "bare": lambda base: base,
    "projected": lambda base: hft.projected(base, start()),
    "clipped": lambda base: hft.clipped(base, max_norm=1e3),
    "three deep": lambda base: hft.projected(hft.l2sp(hft.scheduled(base), start()), start()),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_base_settles_its_own_hparams_under_whatever_is_around_it(around):
    """A rate that a base divides by its own count, after each update, reaches the tuner through all of them."""

    def settle(hparams, new_state):
        return {**hparams, "lr": hparams["lr"] / (1 + new_state.step)}

    opt = hft.hyper(around(hft.adam(lr=0.1)._replace(settle=settle)), by=hft.sgd(lr=0.0), over="lr")
    found = [train(opt, None, start(), batches(steps))[1].tuned["lr"].item() for steps in (1, 2, 3)]
    assert found == pytest.approx([0.1 / 2, 0.1 / 6, 0.1 / 24], rel=1e-6)


@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("radius", [100.0, math.inf])
def test_a_ball_that_never_binds_does_not_change_what_is_tuned_beside_it(norm, radius):
    """The radius in effect is the largest norm: taken for the radius of the step, it would be a tie there."""
    params, data = start(), batches(8)
    runs = [
        train(hft.hyper(base, by=hft.sgd(lr=1e-2), over="lr"), None, params, data)
        for base in (hft.sgd(lr=0.1), hft.projected(hft.sgd(lr=0.1), params, radius=radius, norm=norm))
    ]
    assert largest_difference(runs[0][0], runs[1][0]) <= 1e-14
    assert runs[0][1].tuned["lr"].item() == pytest.approx(runs[1][1].tuned["lr"].item(), abs=1e-14)
    assert abs(runs[0][1].tuned["lr"].item() - 0.1) > 1e-3


def test_a_changed_hparam_counts_for_the_step_it_was_used_in():
    """Under a schedule, the pullback replays the last step with the values of that step."""
    params, base = {"w": torch.ones(1, dtype=torch.float64)}, hft.sgd(lr=0.1, momentum=0.0)
    opt = hft.hyper(base, by=hft.sgd(lr=1.0), over="lr")
    decay = {"base": base.hparams | {"weight_decay": torch.tensor(2.0, dtype=torch.float64)}, "by": opt.hparams["by"]}
    g = {"w": torch.ones(1, dtype=torch.float64)}
    _, state = opt.update(g, opt.init(params), params, decay)
    _, state = opt.update(g, state, params, opt.hparams)
    assert state.tuned["lr"].item() == pytest.approx(0.1 + 3.0)  # d W / d lr = -(g + 2 W) = -3


def test_what_is_tuned_to_nan_warns_once_also_where_all_losses_are_finite():
    """The product of two gradients overflows in the last step, where no loss sees it."""
    x = [torch.full((1,), 1e155, dtype=torch.float64)] * 2
    opt = hft.hyper(hft.sgd(lr=1e-3), by=hft.adam(lr=1e-3), over="lr")
    words = "'lr' has been tuned to NaN, so what it moves is lost: lower the learning rate of what tunes it"
    start_at = torch.zeros(1, dtype=torch.float64)
    with pytest.warns(UserWarning, match=words):
        run = hft.train(opt, lambda p, x: (p * x).sum(), start_at, x)
    assert run.losses.isfinite().all()
    w = torch.nn.Parameter(start_at.clone())
    pure = hft.PureOptimizer([("w", w)], opt)

    def steps():
        for row in x * 2:
            pure.zero_grad()
            (w * row).sum().backward()
            pure.step()

    with pytest.warns(UserWarning, match=words) as said:
        steps()
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("part", [False, True])
def test_a_tuner_goes_up_where_its_base_does(part: bool):
    """A learning rate that is tuned upward by the gain of a larger one."""
    base = hft.sgd(lr=0.1, maximize=True)
    if part:
        base = hft.partition({"up": base, "rest": hft.sgd()}, {"w": "up", "b": "rest"})
    over = "up.lr" if part else "lr"
    with pytest.raises(ValueError, match="base has maximize=True and by maximize=False, so by would tune against base"):
        hft.hyper(base, by=hft.sgd(lr=1e-2), over=over)
    with pytest.raises(ValueError, match="base has maximize=False and by maximize=True"):
        hft.hyper(hft.sgd(), by=hft.hyper(hft.sgd(maximize=True), by=hft.sgd(maximize=True), over="lr"), over="lr")
    opt = hft.hyper(base, by=hft.sgd(lr=1e-2, maximize=True), over=over)
    params = {"w": torch.ones(2), "b": torch.ones(2)}
    state = opt.init(params)
    for _ in range(2):
        params, state = opt.update(params, state, params)  # of half the square, which is to grow
    assert state.tuned[over] > 0.1
