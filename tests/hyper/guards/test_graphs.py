"""Functions that can be differentiated once: a graph with one has no right second derivative."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ...support.hypergradients import DATA, SGD, call, every_transform, every_way, f64, outer, slope
from ...support.problems import Cube, central_differences, start


class Marked(Cube):
    """The usual stack of decorators in extensions."""

    backward = staticmethod(torch.amp.custom_bwd(device_type="cpu")(Cube.backward))


def cubed(params, x, function=Cube):
    return sum(function.apply(v).sum() for v in params.values()) + x.mean()


ONCE = {
    "function": cubed,
    "decorated": lambda p, x: cubed(p, x, Marked),
    "torch's": lambda p, x: torch.distributions.Beta(p["b"].exp(), 1 + x.mean().abs()).rsample().square().sum(),
}


@pytest.mark.parametrize("over", ["lr", "params", "batches", ("lr", "params")])
@pytest.mark.parametrize("train_loss", ONCE.values(), ids=ONCE)
@every_way
def test_a_function_that_can_be_differentiated_once_is_refused(strategy, train_loss, over):
    """Where its output's cotangent is constant torch would take it for linear, and say nothing."""
    with pytest.raises(RuntimeError, match=r"no second derivative .* is once_differentiable"):
        call(train_loss, strategy, over)


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)])
def test_a_function_of_hparams_alone_is_differentiated_once(strategy):
    """A gradient in the params does not go through it."""

    def train_loss(params, x, h):
        return Cube.apply(h) * (params["w"] - x.mean()).square().mean() + params["b"].square().sum()

    def at(h):
        return call(train_loss, hft.Unroll(checkpoint=False), hparams={"loss": h})[0]

    got = call(train_loss, strategy, over="loss", hparams={"loss": f64(0.8)})[1]["loss"]
    assert got.item() == pytest.approx(central_differences(at, f64(0.8))[0].item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # which differentiates a backward pass again
        call(train_loss, hft.Forward(), over="loss", hparams={"loss": f64(0.8)})
    h = f64(0.8).requires_grad_()
    run = hft.train(SGD, train_loss, start(), DATA, hparams={"loss": h}, strategy=hft.Unroll(checkpoint=1))
    with pytest.raises(RuntimeError, match="once_differentiable"):  # so does this
        torch.autograd.grad(outer(run.params), h, create_graph=True)


@every_transform
def test_it_is_refused_under_transforms_and_trains_where_nothing_is_differentiated(transform):
    params = start()

    def cubed_end(lr):
        return hft.train(SGD, cubed, params, DATA, hparams={**SGD.hparams, "lr": lr})

    with pytest.raises(RuntimeError, match=r"no second derivative .*once_differentiable"):
        transform(lambda lr: cubed_end(lr).params["b"].sum())(f64(0.01))
    together = torch.func.vmap(lambda lr: cubed_end(lr).losses)(f64([0.01]))
    torch.testing.assert_close(together[0], cubed_end(f64(0.01)).losses, rtol=1e-12, atol=0)
    slope(cubed, hft.ZeroOrder(2, 1e-3))  # needs no derivative
