"""A hypergradient is right, and says so where it is not: what was once wrong in silence, leaked or failed inside."""

from __future__ import annotations

import copy
import gc
import math
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.anchored.projections import row_norm
from hyperopt_ftp.hyper import forward

from ..support.hypergradients import (
    DATA,
    F64,
    HELD_OUT,
    OTHERS,
    SGD,
    call,
    differences,
    every_exact,
    every_strategy,
    f64,
    module_loss,
    not_converged,
    outer,
    slope,
)
from ..support.problems import batches, central_differences, largest_difference, loss, start

# -- dropout under transforms -----------------------------------------------------------------------------------------


def noisy(params, x):
    return loss({k: F.dropout(v, 0.5) for k, v in params.items()}, x)


def seeded(function):
    def run(*args):
        torch.manual_seed(5)
        return function(*args)

    return run


def value_of_hypergradient(strategy):
    return seeded(lambda lr: call(noisy, strategy, hparams={"lr": lr})[0])


def value_after_train(strategy):
    return seeded(
        lambda lr: outer(
            hft.train(SGD, noisy, start(), DATA, hparams={**SGD.hparams, "lr": lr}, strategy=strategy).params
        )
    )


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f),
    "jvp": lambda f: lambda lr: torch.func.jvp(f, (lr,), (f64(1.0),))[1],
    "vmap of grad": lambda f: lambda lr: torch.func.vmap(torch.func.grad(f), randomness="same")(lr[None])[0],
    "vmap of jvp": lambda f: (
        lambda lr: torch.func.vmap(lambda x: torch.func.jvp(f, (x,), (f64(1.0),))[1], randomness="same")(lr[None])[0]
    ),
}


every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@every_transform
@pytest.mark.parametrize("made", [value_of_hypergradient, value_after_train])
@every_exact
def test_dropout_under_transforms(strategy, made, transform):
    """A step that is computed again under a transform draws the same numbers."""
    want = differences(noisy, lambda: torch.manual_seed(5))
    assert seeded(lambda: slope(noisy, strategy))().item() == pytest.approx(want, rel=1e-6)
    assert seeded(transform(made(strategy)))(SGD.hparams["lr"]).item() == pytest.approx(want, rel=1e-6)


@not_converged
@every_transform
@pytest.mark.parametrize("made", [value_after_train, value_of_hypergradient])
@pytest.mark.parametrize("strategy", OTHERS.values(), ids=OTHERS)
def test_dropout_under_transforms_by_strategies_that_are_not_exact(strategy, made, transform):
    want = seeded(lambda: slope(noisy, strategy))()
    got = seeded(transform(made(strategy)))(SGD.hparams["lr"])
    assert got.item() == pytest.approx(want.item(), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("randomness", ["same", "different"])
@every_exact
def test_dropout_under_vmap(strategy, randomness):
    def both(lr):
        value, grads, _ = call(noisy, strategy, hparams={"lr": lr})
        return value, grads["lr"]

    def rows(shift):
        lrs = f64([0.1, 0.2, 0.4]) + shift
        return seeded(torch.func.vmap(both, randomness=randomness))(lrs)

    h = 1e-5
    want = (rows(h)[0] - rows(-h)[0]) / (2 * h)
    torch.testing.assert_close(rows(0.0)[1], want, rtol=1e-6, atol=1e-8)
    if randomness == "same":
        one = torch.stack([seeded(both)(x)[1] for x in f64([0.1, 0.2, 0.4])])
        torch.testing.assert_close(rows(0.0)[1], one, rtol=1e-10, atol=1e-12)


@every_transform
@every_exact
def test_dropout_and_a_second_derivative(strategy, transform):
    """The case that was first seen: the hypergradient itself under a transform."""
    of_lr = seeded(lambda lr: slope(noisy, strategy, hparams={"lr": lr}))
    want = central_differences(of_lr, SGD.hparams["lr"])[0].item()
    assert seeded(transform(of_lr))(SGD.hparams["lr"]).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("antithetic", [True, False])
def test_dropout_and_zero_order(antithetic):
    """All its trainings see the same numbers: without that the estimate is noise over sigma."""
    strategy = hft.ZeroOrder(400, 1e-3, antithetic, torch.Generator().manual_seed(0))
    want = differences(noisy, lambda: torch.manual_seed(5))
    assert seeded(lambda: slope(noisy, strategy))().item() == pytest.approx(want, rel=0.2)


# -- params without dimensions ----------------------------------------------------------------------------------------


@every_exact
def test_params_without_dimensions(strategy):
    def coupled(p, x):
        return (p["a"] - p["b"] * x.mean() - 1) ** 2 + p["b"] ** 2

    given = {"params": {"a": f64(0.5), "b": f64(2.0)}, "outer_loss": lambda p: p["a"] ** 2}
    assert slope(coupled, strategy, **given).item() == pytest.approx(differences(coupled, **given), rel=1e-6)


@every_exact
def test_one_param_without_dimensions(strategy):
    """A cotangent that is missing is 0; that of a scalar once counted as 1."""
    given = {"params": f64(0.5), "opt": hft.sgd(lr=0.2), "over": ("lr", "loss.c"), "hparams": {"loss": {"c": f64(1.0)}}}
    square = lambda p, _, h: h["c"] * p**2 / 2  # noqa: E731
    grads = call(square, strategy, outer_loss=lambda p: 1 * p, **given)[1]
    assert grads["lr"].item() == pytest.approx(-4 * 0.8**3 / 2, rel=1e-12)  # of (1 - lr c)^4 / 2
    assert grads["loss.c"].item() == pytest.approx(-4 * 0.2 * 0.8**3 / 2, rel=1e-12)
    with pytest.warns(UserWarning, match="is exactly 0"):
        grads = call(square, strategy, outer_loss=lambda p: f64(1.0), **given)[1]
    assert [g.item() for g in grads.values()] == [0, 0]


# -- random numbers that nobody restores ------------------------------------------------------------------------------


def torch_generator():
    g = torch.Generator().manual_seed(3)
    return lambda: g.manual_seed(3), lambda: torch.randn(5, 3, generator=g, dtype=F64)


def numpy_generator():
    held = [np.random.default_rng(3)]
    return lambda: held.__setitem__(0, np.random.default_rng(3)), lambda: torch.from_numpy(held[0].normal(size=(5, 3)))


def numpy_global():
    return lambda: np.random.seed(3), lambda: torch.from_numpy(np.random.normal(size=(5, 3)))


def python_global():
    return lambda: random.seed(3), lambda: f64([[random.gauss(0, 1) for _ in range(3)] for _ in range(5)])


SOURCES = [torch_generator, numpy_generator, numpy_global, python_global]
every_source = pytest.mark.parametrize("source", SOURCES)


@every_source
def test_own_random_numbers_are_an_error_where_steps_are_computed_again(source):
    seed, draw = source()
    seed()
    text = "the training loss of step . was .* torch.Generator of its own, NumPy's or Python's.*checkpoint=False"
    for strategy in (hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt"), hft.Unroll(truncate=2, checkpoint=1)):
        with pytest.raises(RuntimeError, match=text):
            slope(lambda p, x: loss(p, x + draw()), strategy)
    with pytest.raises(RuntimeError, match=text):  # two tangents, one after the other
        call(lambda p, x: loss(p, x + draw()), hft.Forward(chunk=1), over=("lr", "momentum"))
    lr = f64(0.2).requires_grad_()
    run = hft.train(SGD, lambda p, x: loss(p, x + draw()), start(), DATA, hparams={**SGD.hparams, "lr": lr})
    with pytest.raises(RuntimeError, match=text):
        torch.autograd.grad(outer(run.params), lr, create_graph=True)


@every_source
def test_own_random_numbers_are_right_where_each_step_is_computed_once(source):
    seed, draw = source()
    train_loss = lambda p, x: loss(p, x + draw())  # noqa: E731
    want = differences(train_loss, seed)
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=False), hft.Forward()):
        seed()
        assert slope(train_loss, strategy).item() == pytest.approx(want, rel=1e-6)
        seed()
        under = torch.func.grad(lambda lr, how=strategy: call(train_loss, how, hparams={"lr": lr})[0])
        assert under(SGD.hparams["lr"]).item() == pytest.approx(want, rel=1e-6)


@every_source
def test_own_random_numbers_and_zero_order_without_vmap(source):
    seed, draw = source()

    def no_vmap(p, x):
        return loss(p, x + draw()) if p["b"].detach()[0].item() < 1e9 else 0

    seed()
    strategy = hft.ZeroOrder(100, 1e-3, antithetic=False, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="another function each time it is called"):
        slope(no_vmap, strategy)


# -- 16-bit params ----------------------------------------------------------------------------------------------------


def weighed(p, x, h):
    return (1 + h["scale"]) * loss(p, x.float())


def of_dtype(dtype, factor, strategy, over=("lr", "momentum", "loss.scale")):
    opt = hft.sgd(lr=0.2, momentum=0.5)

    def outer_loss(p):
        return factor * loss({k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in p.items()}, HELD_OUT)

    return call(weighed, strategy, over, {"loss": {"scale": f64(0.1)}}, outer_loss, start(dtype), opt=opt)[1]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        *((torch.float16, x) for x in (1e-6, 1e-4, 1.0, 1e4, 1e6)),
        *((torch.bfloat16, x) for x in (1e-6, 1.0, 1e6)),
    ],
)
@every_exact
def test_adjoints_of_16_bit_params(strategy, dtype, factor):
    """Below float16's smallest number, 6e-8, and above its largest, 65504, as where it is at its best."""
    want, got = of_dtype(F64, factor, hft.Unroll()), of_dtype(dtype, factor, strategy)
    for name, right in want.items():
        # Weights are rounded by 2^-11 or 2^-8 in each of 4 steps.
        slack = 0.02 if dtype == torch.float16 else 0.1
        assert got[name].item() / factor == pytest.approx(right.item() / factor, rel=slack, abs=slack / 10), name


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Forward()], ids=["unroll", "forward"])
def test_adjoints_of_float16_under_a_transform_are_warned_of(strategy):
    with pytest.warns(UserWarning, match="adjoints of float16 params are float16 too") as seen:
        torch.func.grad(lambda lr: call(params=start(torch.float16), hparams={"lr": lr}, strategy=strategy)[0])(
            f64(0.2)
        )
    assert {w.filename for w in seen} == {call.__code__.co_filename}


# -- Implicit says how far it came ------------------------------------------------------------------------------------

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


def closed_form(l2, centre):
    """d/dl2 of sum(p)^2 / 2 where p = CURVATURE centre / (CURVATURE + l2)."""
    p = CURVATURE * centre / (CURVATURE + l2)
    return (p.sum() * (-p / (CURVATURE + l2)).sum()).item()


SOLVERS = pytest.mark.parametrize(("solver", "iterations"), [("neumann", 100), ("cg", 3)])


@SOLVERS
def test_implicit_of_one_batch_is_the_closed_form(solver, iterations):
    got = implicit(hft.Implicit(solver, iterations))[1]
    assert got.item() == pytest.approx(closed_form(0.1, CENTRE), rel=1e-9)


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


def test_training_that_has_not_converged_warns():
    with pytest.warns(UserWarning, match=r"training has not converged: the rest of the way would change <dL/dp, p>"):
        implicit(hft.Implicit("cg", 3), steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        implicit(hft.Implicit("cg", 3))


@SOLVERS
def test_implicit_stops_at_its_tolerance_and_reports(solver, iterations):
    reports = []
    for tolerance in (0.5, 1e-2, None):
        got = implicit(hft.Implicit(solver, iterations, tolerance=tolerance, report=reports.append))[1]
        small = torch.finfo(F64).eps ** (2 / 3) if tolerance is None else tolerance
        assert reports[-1].residual <= small
        # The error of x, and so of the result: |A^-1| |b - A x|, with |A^-1| = 1 / 0.12.
        assert abs(got.item() - closed_form(0.1, CENTRE)) <= small / 0.12 * 6 * 6
    counts = [report.iterations for report in reports]
    assert counts[0] < counts[-1] <= iterations
    assert counts == sorted(counts)
    with pytest.warns(UserWarning, match="has not converged"):
        implicit(hft.Implicit(solver, 1, tolerance=1e-3, report=reports.append))
    assert (reports[-1].iterations, bool(reports[-1].residual > 1e-3)) == (1, True)
    implicit(hft.Implicit(solver, 50, tolerance=math.inf, report=reports.append))
    assert reports[-1].iterations == 1


@SOLVERS
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.filterwarnings("ignore:Implicit. training has not converged:UserWarning")
def test_implicit_averages_over_batches(solver, iterations, n):
    """Where training ends, the Hessian is that of the mean of the last n losses, each with a curvature of its own."""
    curvatures = [f64([0.5, 0.2, 0.1]), f64([0.1, 1.2, 0.4]), f64([0.7, 0.3, 1.5])][:n]
    centres = [f64([1.0, 2.0, 3.0]), f64([0.0, 1.0, -1.0]), f64([2.0, 0.0, 1.0])][:n]

    def unlike(p, batch, h):
        curvature, centre = batch
        return ((curvature * (p - centre) ** 2).sum() + h["l2"] * (p**2).sum()) / 2

    data = list(zip(curvatures, centres, strict=True)) * (300 // n)
    _, grads, (end, _) = call(
        unlike, hft.Implicit(solver, iterations, batches=n), "loss.l2", {"loss": {"l2": f64(0.1)}},
        lambda p: p.sum() ** 2 / 2, torch.zeros(3, dtype=F64), data, hft.sgd(lr=0.8),
    )  # fmt: skip
    mean = torch.stack(curvatures).mean(0)
    want = -(end.sum() * end / (mean + 0.1)).sum()
    assert grads["loss.l2"].item() == pytest.approx(want.item(), rel=1e-9)
    last = -(end.sum() * end / (curvatures[-1] + 0.1)).sum()
    assert last.item() != pytest.approx(want.item(), rel=1e-3)


def test_identity_is_the_derivative_of_one_step():
    """T1-T2: the last step's, the params before it held fixed."""
    strategy = hft.Implicit("identity", tolerance=math.inf)
    end = CURVATURE * f64([1.0, 2.0, 3.0]) / (CURVATURE + 0.1)
    assert implicit(strategy)[1].item() == pytest.approx((-0.8 * end.sum() * end.sum()).item(), rel=1e-9)


@SOLVERS
def test_implicit_under_transforms(solver, iterations):
    strategy = hft.Implicit(solver, iterations)
    l2 = f64([0.05, 0.1, 0.2])
    want = torch.stack([implicit(strategy, x)[1] for x in l2])
    torch.testing.assert_close(torch.func.vmap(lambda x: implicit(strategy, x)[1])(l2), want, rtol=1e-9, atol=0)

    def trained(x):
        opt = hft.sgd(lr=0.8)
        hparams = {**opt.hparams, "loss": {"l2": x}}
        data = [f64([1.0, 2.0, 3.0])] * 100
        return hft.train(opt, ridge, torch.zeros(3, dtype=F64), data, hparams=hparams, strategy=strategy).params

    slope_of_it = torch.func.grad(lambda x: trained(x).sum() ** 2 / 2)
    torch.testing.assert_close(slope_of_it(l2[1]), want[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.func.vmap(slope_of_it)(l2), want, rtol=1e-9, atol=0)
    with pytest.warns(UserWarning, match="has not converged"):
        torch.func.vmap(lambda x: implicit(hft.Implicit(solver, 1), x)[1])(l2)


def test_implicit_has_no_derivative_of_the_state_at_the_end():
    decay = f64(0.1).requires_grad_()
    run = hft.train(
        SGD, loss, start(), DATA, hparams={**SGD.hparams, "weight_decay": decay}, strategy=hft.Implicit(iterations=1)
    )
    with pytest.raises(ValueError, match="Implicit has no derivative of the optimizer's state at the end"):
        run.state.momentum_buffer["w"].sum().backward()


# -- what stays alive -------------------------------------------------------------------------------------------------


def nodes(*outputs):
    """Number of nodes of the graphs behind tensors."""
    seen, stack = set(), [x.grad_fn for x in tree.leaves(outputs) if isinstance(x, torch.Tensor)]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [after for after, _ in node.next_functions]
    return len(seen)


def parameters():
    return {name: nn.Parameter(x) for name, x in start().items()}


@not_converged
@every_strategy
def test_bilevel_over_parameters_of_a_module_grows_no_graph(strategy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    train_loss = module_loss(net)
    run = hft.bilevel(
        SGD, hft.sgd(lr=1e-3), "lr", train_loss, train_loss, dict(net.named_parameters()), DATA, [HELD_OUT],
        inner_steps=2, outer_steps=3, strategy=strategy,
    )  # fmt: skip
    for record in run:
        assert not any(x.requires_grad for x in tree.leaves((record.state, record.tuned, record.hypergradient)))
        assert largest_difference(copy.deepcopy(record.state), record.state) == 0
    assert all(p.grad is None for p in net.parameters())


@not_converged
@every_strategy
def test_graphs_of_the_steps_are_freed(strategy):
    """With nn.Parameter as params, and lr that requires grad outside."""
    held = []

    def watched(p, x):
        y = loss(p, x)
        held.append(weakref.ref(y))
        return y

    params, lr = parameters(), f64(0.2).requires_grad_()
    value, grads, (end, state) = call(watched, strategy, params=params, hparams={"lr": lr})
    gc.collect()
    assert len(held) >= len(DATA)
    assert not any(ref() is not None for ref in held)
    assert nodes(value, grads, end, state) == 0
    assert not any(x.requires_grad for x in tree.leaves((value, grads, end, state)))


@not_converged
@every_strategy
def test_a_graph_of_train_is_one_node_that_frees_its_steps(strategy):
    held = []

    def watched(p, x):
        y = loss(p, x)
        held.append(weakref.ref(y))
        return y

    lr = f64(0.2).requires_grad_()
    run = hft.train(SGD, watched, parameters(), DATA, hparams={**SGD.hparams, "lr": lr}, strategy=strategy)
    assert nodes(run.params) <= 2 + 2 + len(start())  # the node, and where the graph ends
    outer(run.params).backward()
    del run
    gc.collect()
    assert not any(ref() is not None for ref in held)


def test_tpgm_returns_tensors_without_grad():
    params = {k: nn.Parameter(v + 1) for k, v in start().items()}
    found = hft.tpgm(params, start(), loss, [HELD_OUT] * 2)
    assert not any(x.requires_grad for x in tree.leaves(found))


# -- compiled losses --------------------------------------------------------------------------------------------------


@every_exact
def test_a_compiled_loss_is_right_inside_and_still_runs_compiled_after(strategy):
    runs = []

    def counting(graph, inputs):
        return lambda *args: runs.append(0) or graph.forward(*args)

    compiled = torch.compile(loss, backend=counting)
    expected = compiled(start(), HELD_OUT)
    assert len(runs) == 1
    assert slope(compiled, strategy).item() == pytest.approx(differences(), rel=1e-6)
    within = len(runs)
    assert compiled(start(), HELD_OUT) == expected
    assert len(runs) == within + 1
    torch._dynamo.reset()


# -- radii of TPGM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize("rate", [0.05, 100.0])
def test_radii_of_tpgm_stay_between_their_floor_and_the_largest_norm(norm, rate):
    w0 = start()
    w1 = {k: v + torch.linspace(0.5, 1, v.numel(), dtype=F64).view(v.shape) for k, v in w0.items()}
    top = {k: row_norm(w1[k] - w0[k], norm).max().item() for k in w0}

    def outer_loss(p, sign):
        return sign * sum(((p[k] - w0[k]) ** 2).sum() for k in p)

    for signs in ([-1.0] * 5, [1.0] * 5, [-1.0, 1.0] * 4):
        radii = hft.tpgm(w1, w0, outer_loss, signs, norm=norm, radius_lr=rate)[1]
        for name, r in radii.items():
            assert 1e-8 <= r.item() <= top[name] * (1 + 1e-12)


def test_a_radius_that_overshoots_comes_back():
    """With the anchor as target every radius should shrink; the first step out is by the first batch alone."""
    w1, w0 = {"w": f64([[3.0, 4.0]])}, {"w": f64([[0.0, 0.0]])}

    def outer_loss(p, sign):
        return sign * (p["w"] ** 2).sum()

    out = hft.tpgm(w1, w0, outer_loss, [-1.0], norm="l2", radius_lr=10.0)[1]["w"]
    assert out.item() == pytest.approx(5.0)  # 2.5 + 10, clipped
    back = hft.tpgm(w1, w0, outer_loss, [-1.0, *[1.0] * 30], norm="l2", radius_lr=10.0)[1]["w"]
    assert back.item() < 4.0


def test_bilevel_settles_projected_radii():
    w0 = start()
    opt = hft.projected(hft.sgd(lr=0.1), w0, "l2", radius=1e-3)
    sign = iter([-1.0, *[1.0] * 20])
    run = hft.bilevel(
        opt, hft.adam(lr=1.0), "radius", loss, lambda p, x: x * sum(((p[k] - w0[k]) ** 2).sum() for k in p), w0,
        DATA, list(sign), inner_steps=2, outer_steps=21,
    )  # fmt: skip
    first, *rest = run
    for record in (first, *rest):
        for name, r in record.tuned["radius"].items():
            assert 0 <= r <= record.state.inner.norms[name].max() * (1 + 1e-12)
    assert all(h != 0 for h in rest[0].hypergradient["radius"].values())
    assert all(rest[-1].tuned["radius"][name] < first.tuned["radius"][name] for name in w0)


# -- Forward ----------------------------------------------------------------------------------------------------------


def mlp_loss(p, batch):
    x, y = batch
    return F.mse_loss(F.linear(F.relu(F.linear(x, p["w1"], p["b1"])), p["w2"]), y)


def mlp():
    g = torch.Generator().manual_seed(4)
    shapes = {"w1": (6, 3), "b1": (6,), "w2": (4, 6)}
    return {k: torch.randn(s, generator=g, dtype=F64) / 2 for k, s in shapes.items()}


MLP_DATA = [(x, torch.sin(x @ start()["w"])) for x in batches(5)]


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_forward_through_the_mean_squared_error_of_a_network(chunk):
    given = {"params": mlp(), "data": MLP_DATA[:4], "outer_loss": lambda p: mlp_loss(p, MLP_DATA[4])}
    over = ("lr", "momentum", "weight_decay")
    want = call(mlp_loss, hft.Unroll(), over, **given)[1]
    got = call(mlp_loss, hft.Forward(chunk=chunk), over, **given)[1]
    assert differences(mlp_loss, **given) == pytest.approx(want["lr"].item(), rel=1e-5)
    assert {k: v.item() for k, v in got.items()} == pytest.approx({k: v.item() for k, v in want.items()}, rel=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_chunk_bounds_the_tangents_that_live_at_once(chunk, monkeypatch):
    """Of seven scalars; the derivative is the same."""
    sizes = []

    def spy(outputs, tangents, inputs, rows):
        sizes.extend(len(t) for t in tangents if t is not None)
        return pull_rows(outputs, tangents, inputs, rows)

    def shifted(p, x, h):
        return loss({"w": p["w"], "b": p["b"] + h["shift"]}, x)

    pull_rows = forward._pull_rows
    monkeypatch.setattr(forward, "_pull_rows", spy)
    hparams = {"loss": {"shift": torch.linspace(0, 1, 4, dtype=F64)}}
    over = ("lr", "momentum", "weight_decay", "loss")
    want, got = (call(shifted, s, over, hparams)[1] for s in (hft.Unroll(), hft.Forward(chunk=chunk)))
    assert largest_difference(got, want) <= 1e-12
    assert max(sizes) == min(chunk, 7)
