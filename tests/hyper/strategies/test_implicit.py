"""Implicit is the closed form where training has converged, and says how far it came where not."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft

from ...support.draws import normal, seeds, tenths
from ...support.hypergradients import DATA, F64, SGD, call, f64
from ...support.problems import loss, start

CENTRE = f64([1.0, 2.0, 3.0])
CURVATURE = f64([0.3, 1.0, 2.0])  # a step at lr contracts by 1 - lr (CURVATURE + l2)


def ridge(p, x, h):
    return ((CURVATURE * (p - x) ** 2).sum() + h["l2"] * (p**2).sum()) / 2


def implicit(strategy, l2=0.1, steps=100, lr=0.8, over="loss.l2"):
    """Value and slope of sum(p)^2 / 2 at the end of training, of one batch."""
    opt, data = hft.sgd(lr=lr), [CENTRE] * steps
    hparams = {**opt.hparams, "loss": {"l2": l2 if isinstance(l2, torch.Tensor) else f64(l2)}}
    w = torch.zeros(3, dtype=F64)
    value, grads, _ = hft.hypergradient(
        opt, ridge, lambda p: p.sum() ** 2 / 2, w, data, over, hparams, strategy=strategy
    )
    return value, grads[over]


def closed_form(l2=0.1, damping=0.0):
    """d/dl2 of sum(p)^2 / 2 where p = CURVATURE CENTRE / (CURVATURE + l2). Damping is added to dF/dp, lr that sum."""
    p = CURVATURE * CENTRE / (CURVATURE + l2)
    return -(p.sum() * 0.8 * p / (0.8 * (CURVATURE + l2) + damping)).sum().item()


SOLVERS = pytest.mark.parametrize(("solver", "iterations"), [("neumann", 100), ("cg", 3)])


#: A step at lr = 0.4 contracts by 1 - 0.4 (0.3 + 0.1) = 0.84 or less, to the 150th power 4e-12; cg: of three params.
ITERATIONS = {"neumann": 150, "cg": 3, "dense": 1}
solvers = st.sampled_from(sorted(ITERATIONS))


@given(solver=solvers, damping=st.sampled_from([0.0, 0.1]), l2=tenths(1, 4), seed=seeds, batches=st.integers(1, 3))
@pytest.mark.filterwarnings("ignore:Implicit. training has not converged:UserWarning")  # of the last batch alone
def test_implicit_of_quadratics_is_the_closed_form(solver, damping, l2, seed, batches):
    """Of the mean of the last losses, whose curvature and slope are the means of theirs; damping is added to dF/dp."""
    *centres, w = normal(seed, [(3,)] * (batches + 1))
    curvatures = [
        0.3 + 1.7 * torch.rand(3, generator=torch.Generator().manual_seed(seed + i), dtype=F64) for i in range(batches)
    ]

    def unlike(p, batch, h):
        curvature, centre = batch
        return ((curvature * (p - centre) ** 2).sum() + h["l2"] * (p**2).sum()) / 2

    data = list(zip(curvatures, centres, strict=True)) * (120 // batches)
    strategy = hft.Implicit(solver, ITERATIONS[solver], damping=damping, batches=batches)
    _, grads, (end, _) = call(
        unlike, strategy, "loss.l2", {"loss": {"l2": f64(l2)}}, lambda p: (p * w).sum(), w, data, hft.sgd(lr=0.4)
    )
    system = 0.4 * (torch.stack(curvatures).mean(0) + l2) + damping
    # A solver stops at a residual of eps^(2/3) = 4e-11, of a system of at least 0.16, and |w| |0.4 end| is below 10.
    assert grads["loss.l2"].item() == pytest.approx(-(w * 0.4 * end / system).sum().item(), rel=0, abs=3e-9)


def test_a_solver_that_has_not_converged_warns_or_raises():
    with pytest.warns(UserWarning, match="solver 'neumann', has not converged: residual .* after 5 iterations, tol"):
        implicit(hft.Implicit("neumann", 5))
    with pytest.warns(UserWarning, match="solver 'cg', has not converged: residual .* after 2 iterations, tolerance"):
        implicit(hft.Implicit("cg", 2))
    with pytest.raises(ArithmeticError, match="solver 'neumann': the residual grew to .*; the steps do not contract"):
        implicit(hft.Implicit("neumann", 100), lr=1.1, steps=1)  # 1 - 1.1 * 2.1 = -1.31
    with pytest.raises(ArithmeticError, match="solver 'neumann': the residual grew"):  # below the limit on the way
        implicit(hft.Implicit("neumann", 20), lr=1.1, steps=1)
    w, saddle = torch.ones(3, dtype=F64), f64([1.0, -0.9999, 0.5])
    with pytest.raises(ArithmeticError, match="solver 'cg': the residual grew"):
        call(
            lambda p, x: (saddle * p**2).sum() / 2, hft.Implicit("cg", 2), "weight_decay", params=w,
            outer_loss=lambda p: p[:2].sum(), opt=hft.sgd(lr=0.1),
        )  # fmt: skip


def test_conjugate_gradients_may_rise_on_the_way_and_refuse_a_saddle():
    """A residual of 19 times the start after one product, for a matrix that is positive; and one that is not."""

    def bowl(p, x, h):
        return (h["a"] * p**2).sum() / 2 - (x * p).sum()

    def slope(a, iterations, scale=1.0, weights=(1.0, 20.0)):
        x, weights, own = f64([0.01, 1.0]), scale * f64(weights), {"loss": {"a": f64(a)}}
        p = x / f64(a)
        strategy = hft.Implicit("cg", iterations)
        found = call(bowl, strategy, "loss.a", own, lambda p: (p * weights).sum(), p, [x], hft.sgd(lr=1.0))
        return found[1]["loss.a"], -p / f64(a) * weights

    for scale in (1.0, 1e-3):
        with pytest.warns(UserWarning, match="has not converged"):
            slope([1.0, 1e-4], 1, scale)
    torch.testing.assert_close(*slope([1.0, 1e-4], 5), rtol=1e-8, atol=0)
    with pytest.raises(ArithmeticError, match="not symmetric and positive"):
        slope([1.0, -0.003], 1)
    torch.testing.assert_close(*slope([-1.0, -1.0], 1, weights=(1.0, 0.0)))  # arrives, whatever the matrix is


@pytest.mark.parametrize("solver", ["cg", "dense"])
def test_a_singular_system_has_a_residual_that_is_not_small(solver):
    """Along a * b = x nothing moves, but the outer loss looks there. Conjugate gradients end with an x of 1e16."""
    reports = []

    def valley(p, x):
        return (p[0] * p[1] - x).square().sum()

    start, x = f64([[1.0, 1.0], [0.5, 0.5]]), f64([1.5, 0.7])
    strategy, opt = hft.Implicit(solver, 50, report=reports.append), hft.sgd(lr=0.05)
    with pytest.warns(UserWarning, match="has not converged: residual"):
        call(valley, strategy, "batches.499", None, lambda p: p[0].sum(), start, [x] * 500, opt)
    assert reports[0].residual > 0.1


def test_training_that_has_not_converged_warns():
    with pytest.warns(UserWarning, match=r"training has not converged: the rest of the way would change <dL/dp, p>"):
        implicit(hft.Implicit("cg", 3), steps=3)


@SOLVERS
def test_implicit_stops_at_its_tolerance_and_reports(solver, iterations):
    reports = []
    for tolerance in (0.5, 1e-2, None):
        got = implicit(hft.Implicit(solver, iterations, tolerance=tolerance, report=reports.append))[1]
        small = torch.finfo(F64).eps ** (2 / 3) if tolerance is None else tolerance
        assert reports[-1].residual <= small
        # The error of x, and so of the result: |A^-1| |b - A x|, with |A^-1| = 1 / 0.12.
        assert abs(got.item() - closed_form()) <= small / 0.12 * 6 * 6
    counts = [report.iterations for report in reports]
    assert counts[0] < counts[-1] <= iterations
    assert counts == sorted(counts)
    with pytest.warns(UserWarning, match="has not converged"):
        implicit(hft.Implicit(solver, 1, tolerance=1e-3, report=reports.append))
    assert (reports[-1].iterations, bool(reports[-1].residual > 1e-3)) == (1, True)
    implicit(hft.Implicit(solver, 50, tolerance=math.inf, report=reports.append))
    assert reports[-1].iterations == 1


def test_identity_is_the_derivative_of_one_step():
    """T1-T2: the last step's, the params before it held fixed."""
    strategy = hft.Implicit("identity", tolerance=math.inf)
    end = CURVATURE * CENTRE / (CURVATURE + 0.1)
    assert implicit(strategy)[1].item() == pytest.approx((-0.8 * end.sum() * end.sum()).item(), rel=1e-9)


@SOLVERS
def test_implicit_under_vmap(solver, iterations):
    """test_inexact.py has the other transforms."""
    l2 = f64([0.05, 0.1, 0.2])
    with pytest.warns(UserWarning, match="has not converged"):
        torch.func.vmap(lambda x: implicit(hft.Implicit(solver, 1), x)[1])(l2)


@pytest.mark.filterwarnings("ignore:.*training has not converged")
def test_a_backward_pass_through_vmap_does_not_train_again():
    """Nor where it is differentiated itself: the end of training is then the fixed point, by the theorem again."""
    sgd, updates, tasks = hft.sgd(lr=0.3, momentum=0.5), [], torch.randn(4, 3, dtype=F64).unbind()

    def update(*given):
        updates.append(0)
        return sgd.update(*given)

    def curved(p, x, h):
        return h * ((p - x) ** 2).sum() / 2 + h**2 * (p**4).sum() / 4

    def after(h, x):
        opt, strategy = sgd._replace(update=update), hft.Implicit("cg", 3, batches=2)
        run = hft.train(opt, curved, torch.zeros(3, dtype=F64), [x] * 80, hparams={"loss": h}, strategy=strategy)
        return (run.params * x).sum()

    def together(h):
        return torch.func.vmap(after, (None, 0))(h, torch.stack(tasks)).sum()

    def slope(f, h, **options):
        return torch.autograd.grad(f(h), h, **options)[0]

    h = f64(0.7).requires_grad_()
    got, count = slope(together, h), len(updates)
    torch.testing.assert_close(got, slope(lambda h: sum(after(h, x) for x in tasks), h), rtol=1e-12, atol=0)
    assert count == 80 + 2 * 2  # and for the products, and the derivative in h
    near = [slope(together, f64(0.7 + e).requires_grad_()).item() for e in (1e-5, -1e-5)]
    for second in (
        lambda: torch.autograd.grad(slope(together, h, create_graph=True), h)[0],
        lambda: torch.func.grad(torch.func.grad(together))(h.detach()),
        lambda: torch.func.jvp(torch.func.grad(lambda h: sum(after(h, x) for x in tasks)), (h.detach(),), (f64(1.0),))[
            1
        ],
        lambda: torch.func.grad(torch.func.grad(lambda h: sum(after(h, x) for x in tasks)))(h.detach()),
    ):
        updates.clear()
        assert second().item() == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-7)
        assert len(updates) < 6 * 80  # of at most four tasks, and the products


def test_implicit_has_no_derivative_of_the_state_at_the_end():
    decay = f64(0.1).requires_grad_()
    run = hft.train(
        SGD, loss, start(), DATA, hparams={**SGD.hparams, "weight_decay": decay}, strategy=hft.Implicit(iterations=1)
    )
    with pytest.raises(ValueError, match="Implicit has no derivative of the optimizer's state at the end"):
        run.state.momentum_buffer["w"].sum().backward()


# -- the state that is held ------------------------------------------------------------------------------------------

STIFF = f64([0.7, 2.0])
OPPOSED = f64([1.0, -2.0])


def coupled(p, x, h):
    return (STIFF * (p - OPPOSED) ** 2).sum() / 2 + 0.1 * p[0] * p[1] + h["l2"] * (p**2).sum() / 2


def through(opt, over, steps, strategy, loss=coupled, scale=1.0, **hparams):
    own = {**opt.hparams, "loss": {"l2": f64(0.1)}, **hparams}
    outer, w = lambda p: scale * p.sum() ** 2, torch.zeros(2, dtype=F64)
    return hft.hypergradient(opt, loss, outer, w, [0] * steps, over, own, strategy=strategy)[1][over]


HELD_RIGHTLY = {
    "sgd": (hft.sgd(lr=0.3, weight_decay=0.1), "weight_decay", 200),
    "momentum": (hft.sgd(lr=0.1, momentum=0.5, weight_decay=0.1), "weight_decay", 150),
    "nesterov": (hft.sgd(lr=0.1, momentum=0.5, nesterov=True), "weight_decay", 150),
    "adam": (hft.adam(lr=0.1, weight_decay=0.1), "weight_decay", 600),
    "nadam": (hft.nadam(lr=0.1), "loss.l2", 600),
    "l2sp": (hft.l2sp(hft.sgd(lr=0.1, momentum=0.5), torch.zeros(2, dtype=F64), 0.1), "strength", 150),
    "decay without momentum": (hft.decayed(hft.sgd(lr=0.3), 0.1), "weight_decay_2", 200),
    "lookahead, between synchronisations": (hft.lookahead(hft.sgd(lr=0.3), every=5), "loss.l2", 502),
}
HELD_WRONGLY = {
    "adamw": (hft.adamw(lr=0.1, weight_decay=0.1), "weight_decay", 600),
    "adamw, decay of 0": (hft.adamw(lr=0.1, weight_decay=0.0), "weight_decay", 600),
    "decay beside momentum": (hft.decayed(hft.sgd(lr=0.1, momentum=0.5), 0.1), "weight_decay_2", 150),
    "l2sp, decoupled": (
        hft.l2sp(hft.sgd(lr=0.1, momentum=0.5), torch.zeros(2, dtype=F64), 0.1, decoupled=True), "strength", 150,
    ),
    "lookahead, at a synchronisation": (hft.lookahead(hft.sgd(lr=0.3), every=5), "loss.l2", 504),
    "schedule-free": (hft.schedule_free_sgd(lr=0.3), "loss.l2", 500),
}  # fmt: skip


@pytest.mark.parametrize(("opt", "over", "steps"), HELD_RIGHTLY.values(), ids=HELD_RIGHTLY)
def test_where_the_state_may_be_held_implicit_is_unroll(opt, over, steps):
    want = through(opt, over, steps, hft.Unroll())
    got = through(opt, over, steps, hft.Implicit(iterations=5000))
    # What training has left to go, which Unroll's derivative has too.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("opt", "over", "steps"), HELD_WRONGLY.values(), ids=HELD_WRONGLY)
def test_where_the_state_may_not_be_held_implicit_warns(opt, over, steps):
    with pytest.warns(UserWarning, match=r"holds the optimizer's state.* so the result is wrong"):
        got = through(opt, over, steps, hft.Implicit(iterations=5000))
    assert abs(got / through(opt, over, steps, hft.Unroll()) - 1) > 0.005
    with warnings.catch_warnings():  # taken for what it is
        warnings.simplefilter("error")
        through(opt, over, steps, hft.Implicit("identity"))


def test_a_small_outer_loss_does_not_hide_it():
    with pytest.warns(UserWarning, match="holds the optimizer's state"):
        through(*HELD_WRONGLY["decay beside momentum"], hft.Implicit("cg", 3), scale=1e-3)


def test_a_state_that_may_not_be_held_warns_under_transforms():
    opt = hft.decayed(hft.sgd(lr=0.1, momentum=0.5), 0.1)

    def of_decay(h):
        return through(opt, "weight_decay_2", 150, hft.Implicit("cg", 3), weight_decay_2=h)

    for transform in (torch.func.grad, lambda f: lambda h: torch.func.vmap(f)(h[None])):
        with pytest.warns(UserWarning, match="holds the optimizer's state"):
            transform(of_decay)(f64(0.1))


MOMENTA = {
    "partition with adam": hft.partition(
        {"one": hft.adam(lr=0.1), "two": hft.sgd(lr=0.1, momentum=0.5)}, {"a": "one", "b": "two"}
    ),
    "tree": hft.sgd(lr=0.1, momentum={"a": f64(0.7), "b": f64(0.5)}),
}


@pytest.mark.parametrize("opt", MOMENTA.values(), ids=MOMENTA)
def test_momenta_that_differ_are_held_rightly(opt):
    """One factor between step and state is not enough: a second solution tells."""

    def loss(p, x, h):
        return coupled(torch.stack([p["a"], p["b"]]), x, h)

    def slope_by(strategy):
        start = {"a": f64(0.0), "b": f64(0.0)}
        own = {**opt.hparams, "loss": {"l2": f64(0.1)}}
        outer = lambda p: (p["a"] + p["b"]) ** 2  # noqa: E731
        return hft.hypergradient(opt, loss, outer, start, [0] * 800, "loss.l2", own, strategy=strategy)[1]["loss.l2"]

    got = slope_by(hft.Implicit(iterations=5000))
    torch.testing.assert_close(got, slope_by(hft.Unroll()), rtol=1e-5, atol=1e-9)


def test_in_32_bits_a_small_step_does_not_hide_it():
    opt, strategy = hft.adamw(lr=0.01, weight_decay=1e-3), hft.Implicit(iterations=3000, tolerance=1e-3)
    small = lambda p, x: (STIFF.float() * (p - OPPOSED.float()) ** 2).sum() / 2  # noqa: E731
    with pytest.warns(UserWarning, match="holds the optimizer's state"):
        call(small, strategy, "weight_decay", None, lambda p: p.sum() ** 2, torch.zeros(2), [0] * 1500, opt)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_derivatives_in_batches_tell_too(decay):
    """With equal curvatures the products in the params are always proportional."""
    base = hft.sgd(lr=0.1, momentum=0.5)
    opt = base if decay is None else hft.decayed(base, decay)

    def slope_by(strategy):
        x, w = OPPOSED.clone().requires_grad_(), torch.zeros(2, dtype=F64)
        run = hft.train(opt, lambda p, x: ((p - x) ** 2).sum() / 2, w, [x] * 100, strategy=strategy)
        return torch.autograd.grad(run.params.sum() ** 2, x)[0]

    implicit = hft.Implicit(iterations=3000, batches=100)
    if decay is None:
        torch.testing.assert_close(slope_by(implicit), slope_by(hft.Unroll()), rtol=1e-5, atol=1e-9)
    else:
        with pytest.warns(UserWarning, match="holds the optimizer's state"):
            slope_by(implicit)


def test_an_hparam_without_entries_tells_nothing():
    def loss(p, x, h):
        return coupled(p, x, h) + h["none"].sum()

    own, w = {"loss": {"l2": f64(0.1), "none": torch.zeros(0, dtype=F64)}}, torch.zeros(2, dtype=F64)
    opt, strategy = hft.sgd(lr=0.1, momentum=0.9), hft.Implicit(iterations=1000)
    grads = call(loss, strategy, "loss", own, lambda p: p.sum() ** 2, w, [0] * 400, opt)[1]["loss"]
    assert grads["none"].shape == (0,)
    assert grads["l2"] == through(opt, "loss.l2", 400, strategy)
