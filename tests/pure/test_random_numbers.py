"""Random numbers in a loss: the same ones in each computation of a step, or an error that says why not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft

from ..support.hypergradients import (
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
from ..support.problems import central_differences, loss, start

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
@pytest.mark.parametrize(
    "strategy",
    [hft.Unroll(truncate=2), hft.Implicit(damping=1.0, iterations=2), hft.ZeroOrder(2, sigma=1e-3)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_own_random_numbers_are_an_error_under_transforms_where_the_strategy_is_not_exact(source, strategy):
    """There the run is made again with a graph for its pullback."""
    seed, draw = source()
    seed()

    def of_lr(lr):
        hparams = {**SGD.hparams, "lr": lr}
        return outer(
            hft.train(SGD, lambda p, x: loss(p, x + draw()), start(), DATA, hparams=hparams, strategy=strategy).params
        )

    with pytest.raises(RuntimeError, match="the training loss of step 0 was"):  # the first that is another
        torch.func.grad(of_lr)(SGD.hparams["lr"])
    with pytest.raises(RuntimeError, match="the training loss of step . was"):
        torch.func.jvp(of_lr, (SGD.hparams["lr"],), (f64(1.0),))


@every_source
def test_own_random_numbers_and_zero_order_without_vmap(source):
    seed, draw = source()

    def no_vmap(p, x):
        return loss(p, x + draw()) if p["b"].detach()[0].item() < 1e9 else 0

    seed()
    strategy = hft.ZeroOrder(100, 1e-3, antithetic=False, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="another function each time it is called"):
        slope(no_vmap, strategy)


def shifted(first, again, dtype=F64):
    """A backward pass through steps that add ``first(loss)`` to their loss, and ``again(loss)`` when made again."""
    shift, lr = first, f64(0.2).requires_grad_()

    def wide(p, x):
        y = loss({name: w.to(torch.promote_types(w.dtype, torch.float32)) for name, w in p.items()}, x)
        return y + shift(y.detach())

    hparams = {**SGD.hparams, "lr": lr}
    run = hft.train(SGD, wide, start(dtype), DATA, hparams=hparams, strategy=hft.Unroll(checkpoint=1))
    shift = again
    return torch.autograd.grad(outer(run.params), lr)[0]


@pytest.mark.filterwarnings("ignore:the training loss of step 0 of 4 is inf")
def test_the_last_bit_of_a_loss_may_be_another():
    """As LAPACK's may on equal numbers."""
    ulp = torch.finfo(F64).eps
    want = shifted(torch.zeros_like, torch.zeros_like)
    assert torch.equal(shifted(torch.zeros_like, lambda y: ulp * y), want)
    for first, again in ((0.0, 1e-12), (0.0, -64 * ulp), (0.0, float("nan")), (float("inf"), 0.0)):
        with pytest.raises(RuntimeError, match="the training loss of step . was"):
            shifted(lambda y, share=first: share * y, lambda y, share=again: share * y)


def test_a_loss_in_32_bits_over_params_in_16_is_compared_as_one_in_32():
    with pytest.raises(RuntimeError, match="the training loss of step 3 was"):
        shifted(torch.zeros_like, lambda y: 1e-3 * y, torch.bfloat16)
