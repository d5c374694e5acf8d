"""Hypergradient descent of the learning rate against `hyper`, and what it leaves alone."""

from __future__ import annotations

import copy
import re

import pytest
import torch

import hyperopt_ftp as hft

from ..support.compare import equal
from ..support.trajectories import parameters, play, problem, tensors


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "rmsprop", "adafactor"])
def test_hypergradient_descent_is_hyper_over_the_learning_rate(name: str):
    make, peer = {
        "sgd": (lambda: hft.sgd(lr=0.02), lambda p: torch.optim.SGD(p, lr=0.02)),
        "momentum": (lambda: hft.sgd(lr=0.02, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
        "adam": (lambda: hft.adam(lr=0.02), lambda p: torch.optim.Adam(p, lr=0.02)),
        "adamw": (
            lambda: hft.adamw(lr=0.02, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
        ),
        "rmsprop": (lambda: hft.rmsprop(lr=0.02), lambda p: torch.optim.RMSprop(p, lr=0.02)),
        # Below its bound on the rate, which is 1 / sqrt(30) at the end.
        "adafactor": (lambda: hft.adafactor(lr=0.02), lambda p: torch.optim.Adafactor(p, lr=0.02)),
    }[name]
    _, first, grads = problem()
    params = parameters(first)
    opt = hft.HypergradientDescent(peer(params.values()), lr_lr=1e-4)
    pure = hft.hyper(make(), by=hft.sgd(lr=1e-4), over="lr")
    weights, state, seen = tensors(first), pure.init(tensors(first)), []
    for t in play(params, opt, grads):
        weights, state = pure.update(tensors(grads[t]), state, weights)
        seen.append(opt.param_groups[0]["lr"])
        # u is read off the weights: rounding of W over lr, 1e-16 / 1e-3, times the gradients' size, over 30 steps.
        assert seen[-1] == pytest.approx(state.tuned["lr"].item(), abs=1e-10)
        for key, p in params.items():
            torch.testing.assert_close(p.detach(), weights[key], rtol=0, atol=1e-9)
    assert len(set(seen)) > 20


#: Those that can be a base.
OF_TORCH = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if name not in ("Optimizer", "LBFGS", "SparseAdam")
)


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_docstring_names_those_whose_steps_are_not_proportional_to_the_learning_rate(name: str):
    grads = torch.randn(7, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def last_step(lr: float) -> torch.Tensor:
        w = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
        opt = getattr(torch.optim, name)([w], lr=1.0)
        before = w.detach().clone()
        for t, w.grad in enumerate(grads, 1):
            opt.param_groups[0]["lr"] = lr if t == len(grads) else 1.0
            before = w.detach().clone()
            opt.step()
        return w.detach() - before

    proportional = torch.allclose(last_step(1.5), 1.5 * last_step(1.0), rtol=1e-9, atol=0)
    said = " ".join(str(hft.HypergradientDescent.__doc__).split()).partition("those of torch.optim but ")[2]
    assert proportional == (name not in re.findall(r"\w+", said.partition(". ")[0]))


def test_hypergradient_descent_goes_on_from_a_checkpoint_and_stops_at_zero():
    _, first, grads = problem()
    params = parameters(first)
    opt = hft.HypergradientDescent(torch.optim.Adam(params.values(), lr=0.02), lr_lr=1e-4)
    list(play(params, opt, grads[:7]))
    others = copy.deepcopy(params)
    again = hft.HypergradientDescent(torch.optim.Adam(others.values(), lr=0.5), lr_lr=1e-4)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in zip(play(params, opt, grads[7:]), play(others, again, grads[7:]), strict=True):
        assert equal(params.values(), others.values())
        assert opt.param_groups[0]["lr"] == again.param_groups[0]["lr"]
    wild = hft.HypergradientDescent(torch.optim.SGD(params.values(), lr=0.02), lr_lr=1e3)
    list(play(params, wild, grads[10:]))
    assert wild.param_groups[0]["lr"] >= 0
    assert all(p.isfinite().all() for p in params.values())


@pytest.mark.parametrize("maximize", [False, True])
def test_hypergradient_descent_goes_back_when_its_base_refuses(maximize: bool):
    class Refusing(torch.optim.SGD):
        refuses = False

        def step(self, closure=None):
            if self.refuses:
                raise ArithmeticError
            return super().step(closure)

    sign = -1 if maximize else 1
    w = torch.nn.Parameter(torch.ones(1))
    base = Refusing([w], lr=0.1, maximize=maximize)
    opt = hft.HypergradientDescent(base, lr_lr=0.01)
    w.grad = sign * torch.ones(1)
    opt.step()
    base.refuses = True
    with pytest.raises(ArithmeticError):
        opt.step()
    assert opt.param_groups[0]["lr"] == 0.1
    base.refuses = False
    opt.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.11)


def test_hypergradient_descent_does_not_count_what_did_not_move():
    w, v = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    opt = hft.HypergradientDescent(torch.optim.SGD([w, v], lr=0.1), lr_lr=0.01)
    for g, k in ((1.0, 1.0), (None, 0.0), (1.0, 0.0)):
        w.grad = None if g is None else torch.tensor([g])
        v.grad = torch.tensor([k])
        opt.step()
        assert opt.param_groups[0]["lr"] == 0.1


def test_an_infinite_gradient_leaves_the_learning_rate():
    w, v = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    opt = hft.HypergradientDescent(torch.optim.SGD([w, v], lr=0.1), lr_lr=0.0)
    for g in (1.0, float("inf")):
        w.grad, v.grad = torch.tensor([g]), torch.ones(1)
        opt.step()
    assert opt.param_groups[0]["lr"] == 0.1
    assert v.isfinite()


def test_hypergradient_descent_counts_only_what_is_not_excluded():
    _, first, grads = problem()
    params = parameters(first)
    base = torch.optim.SGD(params.items(), lr=torch.tensor(0.02))
    with pytest.warns(UserWarning, match="exclude leaves HypergradientDescent no parameter of 3, so it is SGD"):
        opt = hft.HypergradientDescent(base, lr_lr=1e-3, exclude=["*"])
    list(play(params, opt, grads[:5]))
    assert opt.param_groups[0]["lr"] == pytest.approx(0.02)


def test_a_schedule_free_pure_optimizer_is_refused():
    w = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"whose step is not proportional to its learning rate: take PureOptimizer"):
        hft.HypergradientDescent(hft.PureOptimizer([w], hft.schedule_free_sgd()))


@pytest.mark.parametrize("make", [lambda b: hft.L2SP(b, decoupled=False), hft.DiGraP], ids=["L2SP", "DiGraP"])
def test_what_changes_gradients_alone_goes_around_it(make):
    make(hft.PureOptimizer([("w", torch.nn.Parameter(torch.ones(2)))], hft.schedule_free_sgd()))
    with pytest.raises(ValueError, match="what is done to the parameters is lost"):
        hft.L2SP(hft.PureOptimizer([("w", torch.nn.Parameter(torch.ones(2)))], hft.schedule_free_sgd()), decoupled=True)
