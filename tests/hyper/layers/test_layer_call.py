"""What a layer of hft.remat may not do, and what looks at a loss through it."""

from __future__ import annotations

import itertools
import random
import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft

from .problems import W, X, assert_close, f64, real, tanh


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()


class Box:
    def __init__(self, tensor=None):
        self.inside = {"a": [tensor]}


CAPTURED, NORM = real(3).requires_grad_(), nn.BatchNorm1d(3, dtype=f64).requires_grad_(False)
COUNT = torch.zeros(())
CALLS, SIGNS = itertools.count(), torch.tensor([1.0, 1.0, -1.0], dtype=f64)
REFUSED = [
    ("captured", lambda w, x: tanh(w, x) + CAPTURED, ValueError, r"shape \(3,\).* no argument of hft\.remat.*lambda"),
    ("made of it", lambda w, x: tanh(w, x) + CAPTURED_TWICE, ValueError, r"shape \(3,\).*requires grad"),
    ("BatchNorm", lambda w, x: NORM(x @ w), RuntimeError, "writes in place.*BatchNorm"),
    ("a counter", lambda w, x: (COUNT.add_(1), x @ w)[1], RuntimeError, "writes in place"),
    ("an argument", lambda w, x: x.relu_() @ w, RuntimeError, "writes in place"),
    ("weights", lambda w, x: x @ w.mul_(2), RuntimeError, "writes in place"),
    ("checkpoint", lambda w, x: checkpoint(tanh, w, x, use_reentrant=False), RuntimeError, "hooks on saved tensors"),
    ("random", lambda w, x: tanh(w, x) * random.random(), RuntimeError, "gives another result"),
    ("order", lambda w, x: tanh(w, x).roll(next(CALLS), 0), RuntimeError, "gives another result"),
    ("signs", lambda w, x: tanh(w, x) * SIGNS.roll(next(CALLS)), RuntimeError, "gives another result"),
    ("once", lambda w, x: Once.apply(x @ w), RuntimeError, r"no second derivative \(Once"),
]  # fmt: skip
CAPTURED_TWICE = 2 * CAPTURED


@pytest.mark.parametrize(("layer", "kind", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("strategy", [None, hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1)], ids=str)
def test_it_is_refused(layer, kind, text, strategy):
    def loss(w, x):
        return hft.remat(layer, w, x).square().mean()

    def second():
        w = W.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(w, X.clone()), w, create_graph=True)
        return torch.autograd.grad(g.sum(), w)

    def trained():
        hft.hypergradient(hft.sgd(lr=0.1), loss, torch.sum, W, [X.clone()] * 2, over="lr", strategy=strategy)

    mean = NORM.running_mean.clone()
    with pytest.raises(kind, match=text):
        (trained if strategy else second)()
    assert NORM.running_mean.equal(mean)
    assert COUNT == 0


def test_a_function_without_second_derivative_may_have_a_first_one():
    w = W.clone().requires_grad_()
    found = torch.autograd.grad(hft.remat(Once.apply, w).sum(), w)
    assert_close(found, [W.exp()])


def test_objects_that_hold_tensors():
    w = W.clone().requires_grad_()

    def fills(box, w):
        box.inside["a"] = [w.detach()]
        return w.sin()

    for layer, box in [(lambda box, w: w.sin(), Box(X)), (lambda box, w: w.sin(), Box(Box(Box(X)))), (fills, Box())]:
        with pytest.raises(TypeError, match="holds tensors, a Box"):
            hft.remat(layer, box, w)
    assert hft.remat(lambda box, w: w.sin(), Box(), w).equal(W.sin())


def test_an_argument_that_is_changed_before_the_backward_pass():
    w, x = W.clone().requires_grad_(), X.clone()
    y = hft.remat(tanh, w, x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, w)


def test_a_module_is_made_again_in_the_mode_that_it_had():
    """A network goes into ``eval()`` before its outer loss. A function does not tell which modules it closes over."""
    net, x = nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 1, dtype=f64)), X.clone().requires_grad_()

    def product(call):
        torch.manual_seed(0)
        net.train()
        y = call(x).sin().sum()
        net.eval()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        assert not any(m.training for m in net.modules())
        return [g, *torch.autograd.grad(g.square().sum(), x)]

    assert_close(product(lambda x: hft.remat(net, x)), product(net))
    with pytest.raises(RuntimeError, match=r"gives another result.*eval\(\) of a module that it closes over"):
        product(lambda x: hft.remat(lambda x: net[0](x), x))


@pytest.mark.parametrize("strategy", [hft.Unroll(compile="eager"), hft.Forward(compile="eager")], ids=str)
def test_a_program_has_no_remats(strategy):
    def loss(w, x):
        return hft.remat(tanh, w, x).square().mean()

    with pytest.raises(RuntimeError, match=r"hft\.remat in it cannot be compiled"):
        hft.hypergradient(hft.sgd(lr=0.1), loss, torch.sum, W, [X] * 2, over="lr", strategy=strategy)


# What looks at a loss sees through a remat.


def looked_at(layer, strategy=None, own=0.5):
    def loss(w, x, own):
        return hft.remat(layer, w, x, own).square().mean()

    hparams = {"loss": torch.tensor(own, dtype=f64)}
    return hft.hypergradient(
        hft.sgd(lr=0.1), loss, torch.sum, W, [X] * 3, over="loss", hparams=hparams, strategy=strategy
    )[1]["loss"]  # fmt: skip


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)], ids=str)
def test_a_number_of_an_hparam_is_not_read_inside(strategy):
    steps = []
    layers = [
        lambda w, x, h: tanh(w, x) * h.item(),
        lambda w, x, h: tanh(w, x) * (2 * h).item(),
        lambda w, x, h: hft.remat(lambda a, b: a * b.item(), tanh(w, x), h * 2),
        # From the second step on.
        lambda w, x, h: (steps.append(0), tanh(w, x) * (h if len(steps) < 3 else float(h)))[1],
    ]
    for layer in layers:
        with pytest.raises(RuntimeError, match="takes the number of an hparam"):
            looked_at(layer, strategy)


def test_a_number_of_a_weight_may_be_logged_and_is_warned_of_where_it_counts():
    log = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = looked_at(lambda w, x, h: (log.append(w.sum().item()), tanh(w, x) * h)[1])
        assert_close([found], [looked_at(lambda w, x, h: tanh(w, x) * h)])
    assert log
    with pytest.warns(UserWarning, match="makes a number of a tensor"):
        looked_at(lambda w, x, h: tanh(w, x) * h * w.sum().item())
