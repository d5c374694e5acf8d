"""What a training loss may do, and what is refused: losses without a graph, inference mode, leaves of its own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ...support.compare import same
from ...support.hypergradients import (
    DATA,
    EXACT,
    F64,
    SGD,
    call,
    differences,
    every_strategy,
    every_way,
    f64,
    not_converged,
    slope,
)
from ...support.problems import central_differences, loss, start

# -- losses without a graph, and no gradients at all ------------------------------------------------------------------

NO_GRAPH = {
    "detach": lambda p, x: loss(p, x).detach(),
    "no_grad": torch.no_grad()(lambda p, x: loss(p, x)),
    "item": lambda p, x: torch.tensor(loss(p, x).item()),
    "inference": torch.inference_mode()(lambda p, x: loss({k: v.clone() for k, v in p.items()}, x)),
}


@pytest.mark.filterwarnings("ignore:train_loss makes a number:UserWarning")
@pytest.mark.parametrize("train_loss", NO_GRAPH.values(), ids=NO_GRAPH)
@every_strategy
def test_a_loss_without_a_graph_is_an_error(strategy, train_loss):
    for act in (
        lambda: call(train_loss, strategy),
        lambda: hft.train(SGD, train_loss, start(), DATA, strategy=strategy),
    ):
        with pytest.raises(ValueError, match="loss without a graph: .*(detach, no_grad, item, inference mode)"):
            act()


@not_converged
@every_strategy
def test_under_inference_mode_there_are_values_and_no_hypergradients(strategy):
    lr, params = f64(0.2).requires_grad_(), start()
    want = hft.train(SGD, loss, params, DATA, hparams={"lr": lr}, strategy=strategy).detached()
    with torch.inference_mode():
        made = {n: x.clone() for n, x in params.items()}, [x.clone() for x in DATA], {"lr": lr.clone()}
        for given in ((params, DATA, {"lr": lr}), made, (params, Reader(made[1]), {"lr": lr})):
            run = hft.train(SGD, loss, *given[:2], hparams=given[2], strategy=strategy)
            assert not any(x.requires_grad or x.is_inference() for x in tree.leaves(run))
            assert same(run, want)
        with pytest.raises(RuntimeError, match="no gradients under torch.inference_mode.*hft.train"):
            call(strategy=strategy)
        twice = {n: torch.stack([x, x + 1]) for n, x in made[0].items()}
        found = torch.func.vmap(lambda p: hft.train(SGD, loss, p, made[1], strategy=strategy).params)(twice)
        torch.testing.assert_close({n: x[0] for n, x in found.items()}, want.params, rtol=1e-13, atol=1e-15)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(slope(strategy=strategy, params=made[0], data=made[1]), slope(strategy=strategy, params=params))
    if strategy in (EXACT["unroll"], EXACT["unroll-every-step"]):
        with torch.inference_mode():
            *_, last = hft.steps(SGD, loss, *made[:2], strategy=strategy)
            progress = hft.train(SGD, loss, *made[:2], strategy=strategy, progress=True)
        for found in (last, progress):
            torch.testing.assert_close(found.params, want.params, rtol=1e-13, atol=1e-15)
            assert not any(x.is_inference() for x in tree.leaves((found.params, found.state)))


class Reader:
    """A sequence that is no list."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        return self.data[k]


@every_way
def test_no_grad_outside_changes_nothing(strategy):
    with torch.no_grad():
        got = slope(strategy=strategy)
    assert torch.equal(got, slope(strategy=strategy))


def test_a_loss_of_ones_own_may_inherit_from_torch_s():
    class Own(nn.modules.loss._Loss):
        def forward(self, params, batch):
            return loss(params, batch)

    assert torch.equal(slope(train_loss=Own()), slope())


# -- leaves of its own ------------------------------------------------------------------------------------------------


def assigned(x):
    x.requires_grad = True
    return x


LEAVES = {
    "requires_grad_ of the batch": lambda x: x.requires_grad_(),
    "requires_grad = of the batch": assigned,
    "requires_grad_": lambda x: x.detach().requires_grad_(),
    "requires_grad =": lambda x: assigned(x.detach()),
    "requires_grad=": lambda x: torch.tensor(x.tolist(), dtype=x.dtype, requires_grad=True),
}


def pinn(how):
    """Params, and the residual of a differential equation: a derivative in the input, which is no param."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def train_loss(params, x):
        x = LEAVES[how](x)
        u = torch.func.functional_call(net, params, (x,))
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (du[:, :1] - u).square().mean()

    return {name: p.detach() for name, p in net.named_parameters()}, train_loss


def points():
    return [torch.rand(5, 2, dtype=F64) for _ in range(3)]


@pytest.mark.parametrize("how", LEAVES)
@every_way
def test_a_derivative_in_the_input_inside_a_loss_is_right(strategy, how):
    params, train_loss = pinn(how)
    given = {"params": params, "data": points(), "outer_loss": lambda p: sum(x.square().sum() for x in p.values())}
    got = slope(train_loss, strategy, **given)
    assert got.item() == pytest.approx(differences(train_loss, **given), rel=1e-6)


@pytest.mark.parametrize("asked", [False, True])
def test_a_batch_that_a_loss_lets_require_grad_is_not_the_callers(asked):
    (params, train_loss), data = pinn("requires_grad_ of the batch"), points()
    hft.train(SGD, train_loss, params, data, hparams={"lr": f64(0.1).requires_grad_(asked)})
    assert not any(x.requires_grad for x in data)


def test_a_stranger_beside_a_leaf_of_its_own_is_refused_or_counts():
    params, train_loss = pinn("requires_grad_")
    stranger, data = f64(0.5).requires_grad_(), points()

    def end(x, strategy=None):
        return hft.train(SGD, lambda p, b: train_loss(p, b) * x, params, data, strategy=strategy).params["0.bias"].sum()

    with pytest.raises(ValueError, match=r"uses a tensor of shape \(\) .* its derivative would be lost"):
        end(stranger, hft.Unroll(checkpoint=1))
    (got,) = torch.autograd.grad(end(stranger), stranger)
    assert got.item() == pytest.approx(central_differences(end, f64(0.5))[0].item(), rel=1e-6)


def test_a_gradient_inside_a_loss_under_several_transforms_is_right_or_an_error_with_a_way_out():
    """By a strategy that is not exact, the loss is looked at without a graph there."""

    def end(h, strategy, take):
        def train_loss(p, x, h):
            fit = lambda p: h * (p - x).square().sum() + p.square().square().sum()  # noqa: E731
            return fit(p) + 0.1 * take(fit, p).square().sum()

        opt, data = hft.sgd(lr=0.02), [f64([1.0])] * 150
        return hft.train(opt, train_loss, f64([0.5]), data, hparams={"loss": h}, strategy=strategy).params

    def by_autograd(f, x):
        return torch.autograd.grad(f(x), x, create_graph=True)[0]

    def each(strategy, take):
        slope = torch.func.grad(lambda h: end(h, strategy, take).sum())
        return torch.func.vmap(slope)(torch.tensor([0.5, 1.0], dtype=F64))

    how = hft.Implicit(iterations=300)
    want = each(hft.Unroll(), by_autograd)
    torch.testing.assert_close(each(how, lambda f, x: torch.func.grad(f)(x)), want, rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="takes a gradient itself .*take torch.func.grad in it"):
        each(how, by_autograd)


def test_random_numbers_are_drawn_once_where_the_loss_is_looked_at_again():
    params, inner = pinn("requires_grad_")

    def train_loss(p, x):
        return inner(p, x + torch.randn_like(x))

    found, data = [], [torch.zeros(5, 2, dtype=F64)] * 3
    for grad in (False, True):
        torch.manual_seed(3)
        with torch.set_grad_enabled(grad):
            found.append(hft.train(SGD, train_loss, params, data).losses)
    assert torch.equal(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(train_loss, params=params, data=data, outer_loss=lambda p: p["0.bias"].sum())
