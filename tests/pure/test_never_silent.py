"""A hypergradient is right, or an error says what to do: what once went wrong in silence, leaked or failed inside."""

from __future__ import annotations

import copy
import functools
import gc
import io
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

from ..support.problems import batches, central_differences, largest_difference, loss, start

F64 = torch.float64
DATA, HELD_OUT = batches(4), batches(1)[0] + 0.3
SGD = hft.sgd(lr=0.2, momentum=0.5)
#: Exact ones: each is held to central differences.
EXACT = {
    "unroll": hft.Unroll(),
    "unroll-sqrt-offload": hft.Unroll(checkpoint="sqrt", offload=True),
    "unroll-graphs-kept": hft.Unroll(checkpoint=False),
    "forward": hft.Forward(),
    "forward-by-one": hft.Forward(chunk=1),
}
OTHERS = {"truncated": hft.Unroll(truncate=2), "implicit": hft.Implicit(iterations=1, tolerance=math.inf)}
every_exact = pytest.mark.parametrize("strategy", EXACT.values(), ids=EXACT)
every_strategy = pytest.mark.parametrize("strategy", [*EXACT.values(), *OTHERS.values()], ids=[*EXACT, *OTHERS])
#: The training has not converged here, and Implicit says so; or by definition does not depend on lr.
not_converged = pytest.mark.filterwarnings("ignore:Implicit. training:UserWarning", "ignore:the hyperg:UserWarning")


def f64(x):
    return torch.tensor(x, dtype=F64)


def outer(params):
    return loss(params, HELD_OUT)


def call(train_loss=loss, strategy=None, over="lr", hparams=None, outer_loss=outer, params=None, data=DATA, opt=SGD):
    given = start() if params is None else params
    return hft.hypergradient(
        opt, train_loss, outer_loss, given, data, over, {**opt.hparams, **(hparams or {})}, strategy=strategy
    )


def slope(train_loss=loss, strategy=None, **options):
    """The hypergradient of lr."""
    return call(train_loss, strategy, **options)[1]["lr"]


def same(a, b):
    """Whether two trees are equal bit for bit, numbers that are no tensors included."""
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    equal = [torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs]
    return tree.structure(a) == tree.structure(b) and all(equal)


def differences(train_loss=loss, seed=lambda: None, opt=SGD, **options):
    """d outer / d lr, by central differences of training itself."""

    def at(lr):
        seed()
        return call(train_loss, opt=opt, hparams={"lr": lr}, strategy=hft.Unroll(checkpoint=False), **options)[0]

    return central_differences(at, opt.hparams["lr"])[0].item()


# -- (1) dropout under transforms -----------------------------------------------------------------------------------


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


# -- (3) params without dimensions ----------------------------------------------------------------------------------


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


# -- (4) random numbers that nobody restores ------------------------------------------------------------------------


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
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint="sqrt"), hft.Unroll(truncate=2)):
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
    for strategy in (hft.Unroll(checkpoint=False), hft.Forward()):
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


# -- (5) writes into what the loss has not made ---------------------------------------------------------------------


def hidden(p, x):
    return x @ p["w"] + p["b"]


def batch_norm_with_statistics(held, p, x):
    return F.batch_norm(hidden(p, x), held["mean"], held["var"], training=True)


def foreach_lerp(held, p, x):
    y = hidden(p, x)
    torch._foreach_lerp_([held["mean"]], [y.detach().mean(0)], 0.1)
    return y + held["mean"]


def lerp_of_an_alias(held, p, x):
    y = hidden(p, x)
    held["mean"].view(2, 2).lerp_(y.detach().mean(0).view(2, 2), 0.1)
    return y


def item_of_a_view(held, p, x):
    held["mean"][1] = 3.0
    return hidden(p, x) + held["mean"]


def add_to_data(held, p, x):
    held["mean"].data.add_(1.0)
    return hidden(p, x) + held["mean"]


def out_argument(held, p, x):
    torch.add(held["mean"], 1.0, out=held["mean"])
    return hidden(p, x) + held["mean"]


def from_the_second_step(held, p, x):
    if held["calls"]:
        held["mean"] += 1.0
    held["calls"].append(0)
    return hidden(p, x) + held["mean"]


def embedding_with_max_norm(held, p, x):
    return F.embedding(torch.tensor([0, 2]), p["w"], max_norm=0.5)


WRITERS = [
    batch_norm_with_statistics, foreach_lerp, lerp_of_an_alias, item_of_a_view, add_to_data, out_argument,
    from_the_second_step, embedding_with_max_norm,
]  # fmt: skip
MODULES = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "InstanceNorm1d": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
}
REFUSED = r"writes in place .*eval\(\).*torch.func.replace_all_batch_norm_modules_\(net\)"


@not_converged
@pytest.mark.parametrize("writer", WRITERS)
@every_strategy
def test_a_write_is_refused(strategy, writer):
    held = {"mean": torch.zeros(4, dtype=F64), "var": torch.ones(4, dtype=F64), "calls": []}
    params, before = start(), copy.deepcopy(held)
    with pytest.raises(RuntimeError, match=REFUSED):
        call(lambda p, x: torch.tanh(writer(held, p, x)).square().mean(), strategy, params=params)
    assert largest_difference((held["mean"], held["var"], params), (before["mean"], before["var"], start())) == 0


@pytest.mark.parametrize("writer", WRITERS[:2])
def test_zero_order_writes_nothing_either(writer):
    held = {"mean": torch.zeros(4, dtype=F64), "var": torch.ones(4, dtype=F64)}
    with pytest.raises(RuntimeError, match=REFUSED):
        call(lambda p, x: torch.tanh(writer(held, p, x)).square().mean(), hft.ZeroOrder(2, 1e-3))
    assert held["mean"].abs().sum() == 0


def normed(name):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), MODULES[name](), nn.Tanh()).double()


def module_loss(net):
    return lambda p, x: torch.func.functional_call(net, p, (x,)).sub(1).square().mean()


def of_module(net, strategy=None, lr=0.2):
    train_loss, opt = module_loss(net), hft.sgd(lr=0.2, momentum=0.5)
    return call(
        train_loss, strategy, params={n: p.detach() for n, p in net.named_parameters()}, opt=opt, hparams={"lr": lr},
        outer_loss=lambda p: train_loss(p, HELD_OUT),
    )  # fmt: skip


@not_converged
@pytest.mark.parametrize("name", MODULES)
@every_strategy
def test_statistics_of_a_module_are_refused_and_unchanged(strategy, name):
    net = normed(name)
    before = {n: x.clone() for n, x in net.named_buffers()}
    with pytest.raises(RuntimeError, match=REFUSED):
        of_module(net, strategy)
    assert largest_difference(dict(net.named_buffers()), before) == 0


@pytest.mark.parametrize("remedy", [nn.Module.eval, torch.func.replace_all_batch_norm_modules_])
@every_exact
def test_both_remedies_that_the_error_names_are_right(strategy, remedy):
    net = normed("BatchNorm1d")
    remedy(net)
    want = central_differences(lambda lr: of_module(net, lr=lr)[0], f64(0.2))[0].item()
    assert of_module(net, strategy)[1]["lr"].item() == pytest.approx(want, rel=1e-6)


@every_exact
def test_writes_into_what_the_loss_made_itself(strategy):
    def busy(p, x):
        y = hidden(p, x)
        y += 1.0
        mean = torch.zeros(4, dtype=F64)
        mean.view(2, 2).lerp_(y.mean(0).view(2, 2), 0.1)
        y = F.batch_norm(y, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), training=True)
        rows = [torch.empty(4, dtype=F64) for _ in range(2)]
        torch.mul(torch.ones(4, dtype=F64), x.mean(), out=rows[0])
        rows[1][:] = x.mean()
        return torch.tanh(F.elu(y, inplace=True) + mean + rows[0] + rows[1]).square().mean()

    assert slope(busy, strategy).item() == pytest.approx(differences(busy), rel=1e-6)


def test_a_write_that_torch_does_not_see_shows_in_the_loss():
    held = torch.zeros(4, dtype=F64)

    def hidden_counter(p, x):
        held.numpy()[:] += 1.0
        return torch.tanh(hidden(p, x) + held).square().mean()

    with pytest.raises(RuntimeError, match="the training loss of step 3 was .* when the step is computed again"):
        slope(hidden_counter)


# -- (6) losses without a graph, and no gradients at all ------------------------------------------------------------


def detached(p, x):
    return loss(p, x).detach()


def without_grad(p, x):
    with torch.no_grad():
        return loss(p, x)


def through_a_number(p, x):
    return torch.tensor(loss(p, x).item())


@torch.inference_mode()
def in_inference(p, x):
    return loss({k: v.clone() for k, v in p.items()}, x)


@pytest.mark.parametrize("train_loss", [detached, without_grad, through_a_number, in_inference])
@every_strategy
def test_a_loss_without_a_graph_is_an_error(strategy, train_loss):
    text = r"train_loss returned a loss without a graph: .*\(detach, no_grad, item, inference mode\)"
    with pytest.raises(ValueError, match=text):
        call(train_loss, strategy)
    with pytest.raises(ValueError, match=text):
        hft.train(SGD, train_loss, start(), DATA, strategy=strategy)


@every_strategy
def test_inference_mode_is_an_error(strategy):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no gradients under torch.inference_mode"):
        call(strategy=strategy)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no gradients under torch.inference_mode"):
        hft.train(SGD, loss, start(), DATA, strategy=strategy)
    with torch.inference_mode():
        params = start()
    with pytest.raises(ValueError, match=r"a tensor of shape \(\d, .*was made under torch.inference_mode\(\).*clone"):
        call(strategy=strategy, params=params)


@every_exact
def test_no_grad_outside_changes_nothing(strategy):
    with torch.no_grad():
        got = slope(strategy=strategy)
    assert torch.equal(got, slope(strategy=strategy))


# -- (7) 16-bit params ----------------------------------------------------------------------------------------------


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
    with pytest.warns(UserWarning, match="under a torch.func transform the adjoints of float16 params are float16 too"):
        torch.func.grad(lambda lr: call(params=start(torch.float16), hparams={"lr": lr}, strategy=strategy)[0])(
            f64(0.2)
        )


# -- (8) Implicit says how far it came ------------------------------------------------------------------------------

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


# -- (11) what stays alive ------------------------------------------------------------------------------------------


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


# -- (12) compiled losses -------------------------------------------------------------------------------------------


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


# -- (14) a skipped round is taken back -----------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [hft.adam(lr=0.01), torch.optim.Adam], ids=["pure", "torch.optim"])
def test_a_skipped_round_is_taken_back(outside):
    """The third batch makes the training NaN; the round goes, the ones after it train from before it."""
    data = [*DATA[:2], DATA[2] * math.nan, DATA[3], *DATA]

    def run(batches, **options):
        return list(
            hft.bilevel(
                SGD, outside, ("lr", "momentum"), loss, loss, start(), batches, [HELD_OUT], inner_steps=2,
                not_finite="skip", **options,
            )
        )  # fmt: skip

    first, bad, *rest = run(data, outer_steps=4)
    assert bad.skipped == ("lr", "momentum")
    assert all(bool(x.isfinite().all()) for r in (bad, *rest) for x in tree.leaves((r.state.params, r.state.inner)))
    assert bad.tuned == first.tuned
    assert same(bad.state._replace(step=first.state.step), first.state)
    without = run([*data[:2], *data[4:]], outer_steps=3)
    assert same(rest[-1].state._replace(step=0), without[-1].state._replace(step=0))
    assert same(run(data, outer_steps=4, state=bad.state)[-1].state, rest[-1].state)


# -- (16) radii of TPGM ---------------------------------------------------------------------------------------------


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


# -- (17) Forward ---------------------------------------------------------------------------------------------------


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


# -- (18) what a strategy returns -----------------------------------------------------------------------------------


class Returning:
    """Unroll, whose results somebody changed."""

    def __init__(self, run=None, pullback=None):
        self._run, self._pullback, self._rule = run, pullback, hft.Unroll()

    def run(self, steps, begin):
        result = self._rule.run(steps, begin)
        return self._run(result) if self._run else result

    def pullback(self, steps, residual, cotangents):
        found = self._rule.pullback(steps, residual, cotangents)
        return self._pullback(found) if self._pullback else found


RETURNED = {
    "a dict": ({"pullback": lambda _: {}}, TypeError, r"Returning.pullback must return Start\(.*got a dict"),
    "nothing": ({"pullback": lambda _: None}, TypeError, "Returning.pullback must return .*got a NoneType"),
    "a shape": (
        {"pullback": lambda x: x._replace(hparams={**x.hparams, "lr": torch.zeros(5)})},
        ValueError, r"Returning.pullback returned \(5,\) for a tensor of hparams with shape \(\)",
    ),
    "a number": (
        {"pullback": lambda x: x._replace(hparams={**x.hparams, "lr": 3.0})}, ValueError, "pullback returned float for",
    ),
    "another name": (
        {"pullback": lambda x: x._replace(hparams={"rate": torch.zeros(())})},
        ValueError, r"must return hparams in the structure of start.hparams, or None; got a dict with .*\['rate'\]",
    ),
    "no residual": ({"run": lambda x: x[0]}, TypeError, r"Returning.run must return \(Trained\(.*, residual\), got"),
    "params alone": ({"run": lambda x: (x[0].params, x[1])}, TypeError, "Returning.run must return"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), RETURNED.values(), ids=RETURNED)
def test_what_a_strategy_returns_is_looked_at(change, error, text):
    with pytest.raises(error, match=text):
        call(strategy=Returning(**change))
    with pytest.raises(error, match=text):
        list(
            hft.bilevel(
                SGD, hft.sgd(lr=0.1), "lr", loss, loss, start(), DATA, [HELD_OUT], inner_steps=2, outer_steps=1,
                strategy=Returning(**change),
            )
        )  # fmt: skip
    assert torch.equal(slope(strategy=Returning()), slope())


# -- wrong arguments are named --------------------------------------------------------------------------------------


def rounds(over="lr", by=None, opt=SGD, train_batches=DATA, outer_batches=(HELD_OUT,), **options):
    given = {"train_loss": loss, "outer_loss": loss, "params": start(), "inner_steps": 2, "outer_steps": 3} | options
    return list(
        hft.bilevel(
            opt, by or hft.sgd(lr=0.1), over, given.pop("train_loss"), given.pop("outer_loss"), given.pop("params"),
            train_batches, outer_batches, **given,
        )
    )  # fmt: skip


def first_state(**options):
    return rounds(outer_steps=1, **options)[0].state


def trained(**options):
    given = {"optimizer": SGD, "train_loss": loss, "params": start(), "batches": DATA} | options
    return hft.train(**given)


def own(value):
    return {**SGD.hparams, "loss": value}


def scaled(p, x, h):
    return h["c"] * loss(p, x)


W = start()
MIXED = [(x, torch.arange(5)) for x in DATA[:2]]
SOLVED_SGD = torch.optim.SGD([torch.ones(1)])
WRONG = {
    "a dict as batches": (lambda: call(data={"x": DATA}), TypeError, "got dict; give a list with one dict for"),
    "a string as batches": (lambda: trained(batches="abc"), TypeError, r"must be a sequence, .*got str; use list\("),
    "a generator as batches": (lambda: call(data=(x for x in DATA)), TypeError, "got generator; use list"),
    "None in params": (lambda: call(params=W | {"b": None}), TypeError, "'b' is None; leave it out"),
    "an int in params": (lambda: trained(params=W | {"b": 3}), TypeError, "but 'b' is a int"),
    "None in params of bilevel": (lambda: rounds(params=W | {"b": None}), TypeError, "'b' is None; leave it out"),
    "meta params": (lambda: call(params=W | {"b": W["b"].to("meta")}), ValueError, "'b' has no values: .* meta"),
    "strings in the loss's hparams": (
        lambda: call(hparams=own({"mode": "sum"})),
        TypeError, r"hparams\['loss'\] must hold tensors or numbers, but 'mode' is a str",
    ),
    "strings in the loss's hparams of bilevel": (
        lambda: rounds(hparams=own({"mode": "sum"})), TypeError, "must hold tensors or numbers, but 'mode' is a str",
    ),
    "samples": (lambda: hft.ZeroOrder(0, 0.1), ValueError, "samples must be a number of samples >= 1, got 0"),
    "samples between numbers": (lambda: hft.ZeroOrder(1.5, 0.1), ValueError, "samples must be a .* >= 1, got 1.5"),
    "sigma of 0": (lambda: hft.ZeroOrder(2, 0.0), ValueError, "sigma must be above 0"),
    "sigma below 0": (lambda: hft.ZeroOrder(2, -1.0), ValueError, r"sigma must lie in \[0, inf\)"),
    "a seed as generator": (lambda: hft.ZeroOrder(2, 0.1, generator=3), TypeError, "a torch.Generator, got int"),
    "chunk": (lambda: hft.Forward(chunk=0), ValueError, "chunk must be None or a number of tangents >= 1, got 0"),
    "a bool as chunk": (lambda: hft.Forward(chunk=True), ValueError, "chunk must be .* got True"),
    "batches of Implicit": (lambda: hft.Implicit(batches=0), ValueError, "batches must be at least 1, got 0"),
    "tolerance": (lambda: hft.Implicit(tolerance=-1.0), ValueError, r"tolerance must lie in \[0, inf\], got -1"),
    "damping": (lambda: hft.Implicit(damping=-1.0), ValueError, r"damping must lie in \[0, inf\), got -1"),
    "more batches than steps": (
        lambda: call(strategy=hft.Implicit(batches=9)), ValueError, "there are 4 steps, fewer than batches = 9",
    ),
    "truncate": (lambda: hft.Unroll(truncate=True), ValueError, "truncate must be .* got True"),
    "checkpoint": (lambda: hft.Unroll(checkpoint=1.5), ValueError, "checkpoint must be .* got 1.5"),
    "a class as strategy": (lambda: rounds(strategy=hft.Unroll), TypeError, r"got the class Unroll; write Unroll\(\)"),
    "an optimizer of torch": (
        lambda: rounds(by=SOLVED_SGD), TypeError, "by must be a pure optimizer .* got an object of the class SGD",
    ),
    "adam not called": (lambda: rounds(by=hft.adam), TypeError, r"adam made a Optimizer. Is it adam\(...\) that was"),
    "LBFGS": (lambda: rounds(by=torch.optim.LBFGS), TypeError, "by: LBFGS evaluates the loss itself"),
    "a factory that fails": (
        lambda: rounds(by=functools.partial(torch.optim.SGD, lr=-1)),
        TypeError, "by was called with a list of 1 tensors and failed: Invalid learning rate",
    ),
    "reset beside params": (
        lambda: rounds("params", reset=W), ValueError, "over='params' tunes where each round starts, and reset",
    ),
    "reset to nothing": (lambda: rounds(reset=lambda k: None), TypeError, "params must be a pytree .* is None"),
    "batches of another number": (
        lambda: rounds("batches"), ValueError, "must be a list of inner_steps = 2 entries, .* got 4",
    ),
    "an outer loss that wants more": (
        lambda: call(outer_loss=lambda p, h: outer(p)), ValueError, "has a second argument, .*no entry 'loss'",
    ),
    "an outer loss of bilevel that wants more": (
        lambda: rounds(outer_loss=lambda p, x, h: loss(p, x)), ValueError, "hparams has no entry 'loss'",
    ),
    "integers by over": (
        lambda: call(lambda p, b: loss(p, b[0]), over="batches", data=MIXED),
        ValueError, "over names 'batches', but 'batches.0.1' is torch.int64: only floating-point",
    ),
    "integers by over of bilevel": (
        lambda: rounds("batches.1", train_batches=MIXED), ValueError, "'batches.1', but 'batches.1.1' is torch.int64",
    ),
    "another over": (
        lambda: rounds("momentum", state=first_state()),
        ValueError, r"state comes from a run over \['lr'\], this one is over \['momentum'\]",
    ),
    "another optimizer": (
        lambda: rounds(opt=hft.adam(lr=0.2), state=first_state()), ValueError, "state.inner is not that of this optimi",
    ),
    "another optimizer outside": (
        lambda: rounds(by=hft.adam(lr=0.1), state=first_state()), ValueError, "state.outer is not that of this by",
    ),
    "a record as state": (lambda: rounds(state=rounds(outer_steps=1)[0]), TypeError, "got Record; pass record.state"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(act, error, text):
    with pytest.raises(error, match=text):
        act()


RAW = {
    "0-d batches": (lambda: trained(batches=f64(1.0)), "batches must be"),
    "a dict as batches of bilevel": (lambda: rounds(train_batches={"x": DATA[0]}), "train_batches"),
    "a string as batches of bilevel": (lambda: rounds(train_batches="abc"), "train_batches"),
    "nothing as batches of bilevel": (lambda: rounds(outer_batches=None), "outer_batches"),
    "None in the loss's hparams": (lambda: call(hparams=own({"mode": None})), r"hparams\['loss'\]"),
    "meta hparams": (lambda: call(hparams={"lr": torch.zeros((), device="meta")}), "meta device"),
    "meta batches": (lambda: call(data=[x.to("meta") for x in DATA]), "meta device"),
    "a word as chunk": (lambda: hft.Forward(chunk="all"), "chunk must be"),
    "chunk between numbers": (lambda: hft.Forward(chunk=1.5), "chunk must be"),
    "a word as truncate": (lambda: hft.Unroll("all"), "truncate must be"),
    "truncate between numbers": (lambda: hft.Unroll(1.5), "truncate must be"),
    "reset to another tree": (lambda: rounds(reset={"w": W["w"]}), "reset"),
    "reset to another shape": (lambda: rounds(reset=W | {"w": torch.zeros(2, 2, dtype=F64)}), "reset"),
    "torch.optim outside, after a pure one": (lambda: rounds(by=torch.optim.SGD, state=first_state()), "state.outer"),
    "another one of torch.optim outside": (
        lambda: rounds(by=torch.optim.Adam, state=first_state(by=torch.optim.SGD)), "state.outer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "text"), RAW.values(), ids=RAW)
def test_more_wrong_arguments(act, text):
    with pytest.raises((TypeError, ValueError), match=text):
        act()


# -- bilevel: the optimizer outside, where rounds start, what is tuned ----------------------------------------------


OUTSIDE = {
    "Adam": torch.optim.Adam,
    "SGD": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "RMSprop": lambda values: torch.optim.RMSprop(values, lr=0.01),
}
OVER = ("lr", "momentum")


def by_hand(make, steps, log=False):
    """The same in a plain loop with an optimizer of torch.optim."""
    free = {n: (SGD.hparams[n].log() if log else SGD.hparams[n].clone()).requires_grad_() for n in OVER}
    optimizer, params, state, found = make(list(free.values())), start(), None, []
    for k in range(steps):
        tuned = {n: u.detach().exp() if log else u.detach().clone() for n, u in free.items()}
        data = [DATA[(2 * k + i) % 4] for i in range(2)]
        _, h, (params, state) = hft.hypergradient(SGD, loss, outer, params, data, OVER, SGD.hparams | tuned, state)
        for n, u in free.items():
            u.grad = h[n] * tuned[n] if log else h[n]
        optimizer.step()
        found.append({n: u.detach().exp() if log else u.detach().clone() for n, u in free.items()})
    return found, params


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE)
def test_an_optimizer_of_torch_outside_is_its_loop_by_hand(make, log):
    options = {"constrain": dict.fromkeys(OVER, "log")} if log else {}
    records = rounds(OVER, make, outer_steps=4, **options)
    tuned, params = by_hand(make, 4, log)
    assert largest_difference([r.tuned for r in records], tuned) <= 1e-15
    assert largest_difference(records[-1].state.params, params) <= 1e-15


def through_a_file(state):
    """As docs/checkpoints.md saves a state: its leaves."""
    file = io.BytesIO()
    values, rebuild = tree.flatten(state)
    torch.save(values, file)
    file.seek(0)
    return rebuild(torch.load(file, weights_only=True))


@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE)
def test_an_optimizer_of_torch_outside_resumes_bit_for_bit(make):
    records = rounds(OVER, make, outer_steps=4)
    for k in range(3):
        again = rounds(OVER, make, outer_steps=4, state=through_a_file(records[k].state))
        assert [r.step for r in again] == list(range(k + 2, 5))
        assert same(again[-1].state, records[-1].state)


@pytest.mark.parametrize("kind", ["tree", "function"])
def test_rounds_that_start_anew(kind):
    starts = [{k: v + 0.1 * i for k, v in start().items()} for i in range(3)]
    reset = start() if kind == "tree" else lambda k: starts[k - 1]
    records = rounds(reset=reset)
    tuned, by = {"lr": SGD.hparams["lr"]}, hft.sgd(lr=0.1)
    state = by.init(tuned)
    for k, record in enumerate(records):
        data = [DATA[(2 * k + i) % 4] for i in range(2)]
        value, h, (params, _) = call(
            params=start() if kind == "tree" else starts[k], data=data, hparams=tuned, over="lr"
        )
        tuned, state = by.update(h, state, tuned)
        assert (record.value, record.tuned["lr"].item()) == (value.item(), tuned["lr"].item())
        assert largest_difference(record.state.params, params) == 0
    assert same(rounds(reset=reset, state=records[0].state)[-1].state, records[-1].state)


def test_params_outside_are_maml():
    """Each round starts from the tuned params; against backpropagation through two steps written out."""
    records = rounds("params", hft.sgd(lr=0.5))
    tuned = {k: v.requires_grad_() for k, v in start().items()}
    lr, mu = 0.2, 0.5
    for k, record in enumerate(records):
        p, buffers = tuned, None
        for i in range(2):
            grads = torch.autograd.grad(loss(p, DATA[(2 * k + i) % 4]), list(p.values()), create_graph=True)
            buffers = grads if buffers is None else [mu * b + g for b, g in zip(buffers, grads, strict=True)]
            p = {n: x - lr * b for (n, x), b in zip(p.items(), buffers, strict=True)}
        value = loss(p, HELD_OUT)
        slopes = dict(zip(tuned, torch.autograd.grad(value, list(tuned.values())), strict=True))
        assert record.value == pytest.approx(value.item(), rel=1e-12)
        assert largest_difference(record.hypergradient["params"], slopes) <= 1e-13
        tuned = {n: (x - 0.5 * slopes[n]).detach().requires_grad_() for n, x in tuned.items()}
        assert largest_difference(record.tuned["params"], tuned) <= 1e-13
    assert records[-1].value < records[0].value
    assert same(rounds("params", hft.sgd(lr=0.5), state=through_a_file(records[0].state))[-1].state, records[-1].state)


def test_batches_outside_are_distillation():
    """Inputs of both steps are learned, their targets stay; derivatives against central differences."""
    data = [{"x": x, "y": torch.ones(5, dtype=torch.int64)} for x in DATA[:2]]
    over = ("batches.0.x", "batches.1.x")

    def fit(p, batch):
        return F.cross_entropy(batch["x"] @ p["w"] + p["b"], batch["y"])

    def held_out(p, x):
        return F.cross_entropy(x @ p["w"] + p["b"], torch.tensor([0, 1, 2, 3, 0]))

    records = rounds(over, hft.adam(lr=0.1), train_batches=data, train_loss=fit, outer_loss=held_out, reset=start())

    def at(xs):
        new = [{**b, "x": xs[f"batches.{i}.x"]} for i, b in enumerate(data)]
        return hft.train(SGD, fit, start(), new).params

    first = {name: data[i]["x"] for i, name in enumerate(over)}
    want = torch.func.grad(lambda xs: held_out(at(xs), HELD_OUT))(first)
    direction = {name: torch.ones_like(x) for name, x in first.items()}
    moved = [held_out(at({n: x + s * direction[n] for n, x in first.items()}), HELD_OUT) for s in (1e-5, -1e-5)]
    along = sum((h * direction[n]).sum() for n, h in records[0].hypergradient.items())
    assert along.item() == pytest.approx(((moved[0] - moved[1]) / 2e-5).item(), rel=1e-6)
    assert largest_difference(records[0].hypergradient, want) <= 1e-13
    assert records[-1].value < records[0].value
    assert data[0]["x"] is DATA[0]


@not_converged
@every_strategy
def test_an_outer_loss_that_sees_the_losss_hparams(strategy):
    """DARTS: its direct derivative counts, beside that through training."""

    def mixed(p, x, h):
        a = torch.softmax(h["alpha"], 0)
        return a[0] * loss(p, x) + a[1] * (p["w"] ** 2).sum()

    def at(alpha, how=None):
        run = hft.train(SGD, mixed, start(), DATA, hparams=own({"alpha": alpha}), strategy=how)
        return mixed(run.params, HELD_OUT, {"alpha": alpha})

    alpha = f64([0.3, -0.2])
    want = alpha.clone().requires_grad_()
    at(want, strategy).backward()
    got = call(mixed, strategy, "loss.alpha", own({"alpha": alpha}), lambda p, h: mixed(p, HELD_OUT, h))[1]
    torch.testing.assert_close(got["loss.alpha"], want.grad, rtol=1e-10, atol=1e-14)
    if strategy in EXACT.values():
        ends = [[alpha + sign * 1e-5 * e for sign in (1, -1)] for e in torch.eye(2, dtype=F64)]
        want = torch.stack([(at(a) - at(b)) / 2e-5 for a, b in ends])
        torch.testing.assert_close(got["loss.alpha"], want, rtol=1e-6, atol=1e-9)
    record = rounds(
        "loss.alpha", train_loss=mixed, outer_loss=mixed, hparams=own({"alpha": alpha}), inner_steps=4, outer_steps=1,
        strategy=strategy,
    )[0]  # fmt: skip
    torch.testing.assert_close(record.hypergradient["loss.alpha"], got["loss.alpha"], rtol=1e-12, atol=1e-15)


# -- bilevel: loaders that shuffle ----------------------------------------------------------------------------------

ROWS = torch.cat(batches(5))[:22]  # 5 batches of 5 and less


def loader(seed=11):
    return torch.utils.data.DataLoader(ROWS, 5, shuffle=True, generator=torch.Generator().manual_seed(seed))


def loader_of_a_sampler(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, 5, sampler=sampler)


def loader_with_two_generators(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, 5, sampler=sampler, generator=torch.Generator().manual_seed(seed))


def loader_of_a_batch_sampler(seed=11):
    sampler = torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(ROWS, batch_sampler=torch.utils.data.BatchSampler(sampler, 5, False))


@pytest.mark.parametrize(
    "make",
    [
        loader,
        loader_of_a_sampler,
        loader_with_two_generators,
        loader_of_a_batch_sampler,
    ],
)
@pytest.mark.parametrize("inner_steps", [2, 5])
def test_a_shuffled_loader_resumes_bit_for_bit_at_any_round(make, inner_steps):
    """5 batches a pass: rounds of 2 end in the middle of one, rounds of 5 at its end."""

    def run(seed=11, **options):
        return rounds(
            train_batches=make(seed), outer_batches=make(seed + 1), inner_steps=inner_steps, outer_steps=6, **options
        )

    records = run()
    order = [r.value for r in records]
    assert len(set(order)) == 6
    for k in range(5):
        # The new process has a generator of its own, wherever that stands.
        again = run(seed=99, state=through_a_file(records[k].state))
        assert [r.value for r in again] == order[k + 1 :]
        assert same(again[-1].state, records[-1].state)


def test_two_loaders_with_one_generator_resume():
    def run(seed, **options):
        g = torch.Generator().manual_seed(seed)
        both = [torch.utils.data.DataLoader(x, 5, shuffle=True, generator=g) for x in (ROWS, ROWS[:11])]
        return rounds(train_batches=both[0], outer_batches=both[1], outer_steps=6, **options)

    records = run(11)
    for k in range(5):
        assert same(run(99, state=records[k].state)[-1].state, records[-1].state)


def test_a_shuffled_loader_resumes_where_a_round_was_skipped():
    bad = ROWS.clone()
    bad[3] = math.nan

    def make(seed):
        return torch.utils.data.DataLoader(bad, 5, shuffle=True, generator=torch.Generator().manual_seed(seed))

    records = rounds(train_batches=make(11), inner_steps=1, outer_steps=12, not_finite="skip")
    skipped = [r.step for r in records if r.skipped]
    assert len(skipped) >= 2
    for k in (skipped[0] - 1, skipped[0], 7):
        again = rounds(
            train_batches=make(99), inner_steps=1, outer_steps=12, not_finite="skip",
            state=through_a_file(records[k].state),
        )  # fmt: skip
        assert same(again[-1].state, records[-1].state)
        assert [r.skipped for r in again] == [r.skipped for r in records[k + 1 :]]
