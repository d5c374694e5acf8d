"""Random numbers in a loss: the same ones in each computation of a step, or an error that says why not."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft

from ...support.hypergradients import (
    DATA,
    F64,
    OTHERS,
    SGD,
    call,
    differences,
    every_exact,
    f64,
    not_converged,
    outer,
    slope,
)
from ...support.problems import central_differences, loss, start

LR = SGD.hparams["lr"]


def trained(train_loss, strategy=None, lr=LR):
    hparams = {**SGD.hparams, "lr": lr}
    return outer(hft.train(SGD, train_loss, start(), DATA, hparams=hparams, strategy=strategy).params)


# -- dropout under transforms -----------------------------------------------------------------------------------------


def noisy(params, x):
    return loss({k: F.dropout(v, 0.5) for k, v in params.items()}, x)


def seeded(function):
    def run(*args):
        torch.manual_seed(5)
        return function(*args)

    return run


def forward(f):
    return lambda lr: torch.func.jvp(f, (lr,), (f64(1.0),))[1]


def mapped(f):
    return lambda lr: torch.func.vmap(f, randomness="same")(lr[None])[0]


TRANSFORMS = {
    "grad": torch.func.grad,
    "jvp": forward,
    "vmap of grad": lambda f: mapped(torch.func.grad(f)),
    "vmap of jvp": lambda f: mapped(forward(f)),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@not_converged
@every_transform
@pytest.mark.parametrize("strategy", OTHERS.values(), ids=OTHERS)
def test_dropout_under_transforms_by_strategies_that_are_not_exact(strategy, transform):
    want = seeded(lambda: slope(noisy, strategy))()
    got = seeded(transform(seeded(lambda lr: trained(noisy, strategy, lr))))(LR)
    assert got.item() == pytest.approx(want.item(), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("randomness", ["same", "different"])
@every_exact
def test_dropout_under_vmap(strategy, randomness):
    def both(lr):
        value, grads, _ = call(noisy, strategy, hparams={"lr": lr})
        return value, grads["lr"]

    def rows(shift):
        return seeded(torch.func.vmap(both, randomness=randomness))(f64([0.1, 0.2, 0.4]) + shift)

    h = 1e-5
    want = (rows(h)[0] - rows(-h)[0]) / (2 * h)
    torch.testing.assert_close(rows(0.0)[1], want, rtol=1e-6, atol=1e-8)
    if randomness == "same":
        one = torch.stack([seeded(both)(x)[1] for x in f64([0.1, 0.2, 0.4])])
        torch.testing.assert_close(rows(0.0)[1], one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("antithetic", [True, False])
def test_dropout_and_zero_order(antithetic):
    """All its trainings see the same numbers: without that the estimate is noise over sigma."""
    strategy = hft.ZeroOrder(400, 1e-3, antithetic, torch.Generator().manual_seed(0))
    want = differences(noisy, lambda: torch.manual_seed(5))
    assert seeded(lambda: slope(noisy, strategy))().item() == pytest.approx(want, rel=0.2)


# -- in an update -----------------------------------------------------------------------------------------------------

UPDATING = [
    hft.Unroll(), hft.Unroll(checkpoint=1), hft.Unroll(checkpoint=2), hft.Unroll(checkpoint=False),
    hft.Unroll(checkpoint="log"), hft.Unroll(memory=2**30), hft.Forward(),
]  # fmt: skip


@pytest.mark.parametrize("strategy", UPDATING, ids=str)
def test_an_update_draws_the_same_numbers_again(strategy):
    """Langevin dynamics. The update's numbers are not those that the step begins with: the loss draws too."""

    def update(grads, state, params, hparams):
        lr, w = hparams["lr"], params["w"]
        return {"w": w - lr * grads["w"] + 0.1 * lr.sqrt() * torch.randn_like(w)}, state

    def drawing(p, x):
        return loss({"w": p["w"] * torch.rand_like(p["w"]), "b": 0}, x)

    opt = hft.Optimizer(lambda params, hparams=None: (), update, {"lr": LR})

    @seeded
    def value(lr):
        w = {"w": start()["w"]}
        return outer({**hft.train(opt, drawing, w, DATA, hparams={"lr": lr}, strategy=strategy).params, "b": 0})

    lr = LR.clone().requires_grad_()
    got = torch.autograd.grad(value(lr), lr)[0]
    assert got.item() == pytest.approx(central_differences(value, LR)[0].item(), rel=1e-6)
    assert value(lr).item() == value(LR).item()  # the numbers of the plain loop
    after = torch.get_rng_state()
    value(lr).backward()
    assert torch.equal(torch.get_rng_state(), after)  # and there
    twice = torch.autograd.grad(torch.autograd.grad(value(lr), lr, create_graph=True)[0], lr)[0]
    slope = lambda x: torch.autograd.grad(value(x := x.detach().requires_grad_()), x)[0]  # noqa: E731
    assert twice.item() == pytest.approx(central_differences(slope, LR)[0].item(), rel=1e-5)


def test_steps_are_made_again_under_the_autocast_that_they_were_made_under():
    def half(p, x):
        return (x.float() @ p["w"].float()).float().square().sum() + p["b"].square().sum()

    def slope(forward, backward):
        lr = LR.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            value = trained(half, hft.Unroll(checkpoint=1), lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return torch.autograd.grad(value, lr)[0]

    assert torch.equal(slope(False, True), slope(False, False))
    assert torch.equal(slope(True, False), slope(True, True))
    assert not torch.equal(slope(True, True), slope(False, False))


# -- random numbers that nobody restores ------------------------------------------------------------------------------

TORCHS = torch.Generator()
#: How each is seeded, and what it draws.
SOURCES = {
    "torch": (lambda: TORCHS.manual_seed(3), lambda: torch.randn(5, 3, generator=TORCHS, dtype=F64)),
    "python": (lambda: random.seed(3), lambda: f64([[random.gauss(0, 1) for _ in range(3)] for _ in range(5)])),
}


@pytest.fixture(params=SOURCES.values(), ids=SOURCES)
def drawn(request):
    """A loss that draws from one of them, and how that is seeded."""
    seed, draw = request.param
    seed()
    return (lambda p, x: loss(p, x + draw())), seed


OTHER = "the training loss of step . was .* torch.Generator of its own, NumPy's or Python's.*checkpoint=False"


def test_own_random_numbers_are_an_error_where_steps_are_computed_again(drawn):
    for strategy in (hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt"), hft.Unroll(truncate=2, checkpoint=1)):
        with pytest.raises(RuntimeError, match=OTHER):
            slope(drawn[0], strategy)
    with pytest.raises(RuntimeError, match=OTHER):  # two tangents, one after the other
        call(drawn[0], hft.Forward(chunk=1), over=("lr", "momentum"))
    lr = f64(0.2).requires_grad_()
    with pytest.raises(RuntimeError, match=OTHER):
        torch.autograd.grad(trained(drawn[0], hft.Unroll(checkpoint=1), lr), lr, create_graph=True)


def test_own_random_numbers_are_right_where_each_step_is_computed_once(drawn):
    train_loss, seed = drawn
    want = differences(train_loss, seed)
    lr = LR.clone().requires_grad_()
    seed()
    (found,) = torch.autograd.grad(trained(train_loss, lr=lr), lr, create_graph=True)
    assert found.item() == pytest.approx(want, rel=1e-6)
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=False), hft.Forward()):
        seed()
        assert slope(train_loss, strategy).item() == pytest.approx(want, rel=1e-6)
        seed()
        under = torch.func.grad(lambda lr, how=strategy: call(train_loss, how, hparams={"lr": lr})[0])
        assert under(LR).item() == pytest.approx(want, rel=1e-6)


@not_converged
@pytest.mark.parametrize("batches", [1, 2])
def test_own_random_numbers_are_an_error_where_the_last_step_is_one_function(drawn, batches):
    """Implicit computes it more than once."""
    strategy = hft.Implicit(damping=1.0, iterations=2, tolerance=math.inf, batches=batches)
    with pytest.raises(RuntimeError, match=OTHER):
        slope(drawn[0], strategy)
    for transform in (torch.func.grad, forward):
        with pytest.raises(RuntimeError, match=OTHER):
            transform(lambda lr: trained(drawn[0], strategy, lr))(LR)


def test_own_random_numbers_and_zero_order_without_vmap(drawn):
    def no_vmap(p, x):
        return drawn[0](p, x) if p["b"].detach()[0].item() < 1e9 else 0

    strategy = hft.ZeroOrder(100, 1e-3, antithetic=False, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="another function each time it is called"):
        slope(no_vmap, strategy)


ULP = torch.finfo(F64).eps
#: dtype of the params, the share of a loss that is added to it, and that which is when the step is made again.
SHIFTS = [
    (F64, 0.0, 1e-12), (F64, 0.0, -64 * ULP), (F64, 0.0, float("nan")), (F64, float("inf"), 0.0),
    (torch.bfloat16, 0.0, 1e-3),  # a loss in 32 bits over params in 16 is compared as one in 32
]  # fmt: skip


def shifted(dtype, first, again, scale=1.0):
    share, lr = first, f64(0.2 / scale).requires_grad_()

    def wide(p, x):
        y = scale * loss({name: w.to(torch.promote_types(w.dtype, torch.float32)) for name, w in p.items()}, x)
        return y + share * y.detach()

    hparams = {**SGD.hparams, "lr": lr}
    run = hft.train(SGD, wide, start(dtype), DATA, hparams=hparams, strategy=hft.Unroll(checkpoint=1))
    share = again
    return torch.autograd.grad(outer(run.params), lr)[0]


@pytest.mark.filterwarnings("ignore:the training loss of step 0 of 4 is inf", "ignore:train_loss detaches")
@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize(("dtype", "first", "again"), SHIFTS)
def test_the_last_bit_of_a_loss_may_be_another_and_no_more(dtype, first, again, scale):
    """As LAPACK's may on equal numbers."""
    assert torch.equal(shifted(F64, 0.0, ULP, scale), shifted(F64, 0.0, 0.0, scale))
    with pytest.raises(RuntimeError, match="the training loss of step . was"):
        shifted(dtype, first, again, scale)


def test_noise_in_a_gradient_alone_is_seen_but_not_where_it_is_zero_but_for_rounding():
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * (1 + 1e-3 * torch.rand(3, 4, generator=TORCHS, dtype=F64))

    def noisy(p, x):
        return loss({**p, "w": Noisy.apply(p["w"])}, x)

    with pytest.raises(RuntimeError, match="or its gradient is another"):
        slope(noisy, hft.Unroll(checkpoint=1))
    own, p = torch.Generator().manual_seed(0), {"a": f64([1.0]), **start()}  # a comes first

    def flat(p, x):
        return loss(p, x) + 1e-18 * (torch.randn(1, generator=own, dtype=F64) * p["a"]).sum()

    torch.testing.assert_close(slope(flat, hft.Unroll(checkpoint=1), params=p), slope(loss))
