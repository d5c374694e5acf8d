"""TorchOpt both ways, against our own optimizers; ours in each of TorchOpt's forms against torch.optim in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torchopt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import CLOSE, largest_difference, strategies

from .support.problems import batches, loss, start, train

PAIRS = [
    (torchopt.sgd, hft.sgd, {"lr": 0.1, "momentum": 0.9}),
    (torchopt.sgd, hft.sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    (torchopt.adam, hft.adam, {"lr": 0.1, "eps": 1e-3}),
    (torchopt.adamw, hft.adamw, {"lr": 0.1, "weight_decay": 0.05}),
    (torchopt.rmsprop, hft.rmsprop, {"lr": 0.05, "eps": 1e-3, "alpha": 0.9}),
]


@pytest.mark.parametrize(("theirs", "ours", "kwargs"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_from_torchopt_trains_as_ours_do_and_has_their_hypergradient(theirs, ours, kwargs):
    data, strategies = batches(5), (hft.Unroll(), hft.Forward())
    found = [
        [
            hft.hypergradient(opt, loss, lambda p: loss(p, data[0]), start(), data, "lr", strategy=s)[1:]
            for s in strategies
        ]
        for opt in (hft.from_torchopt(theirs, **kwargs), ours(**kwargs))
    ]
    # Their bias corrections are float32: 1 - 0.999^t is off by 6e-8 / 1e-3.
    tolerance = 1e-4 if theirs in (torchopt.adam, torchopt.adamw) else 1e-8
    for (grads, (a, _)), (wanted, (b, _)) in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(grads, wanted, rtol=tolerance, atol=0)


def test_torchopt_can_be_tuned_and_can_tune():
    params, data = start(), batches(6)
    for opt in (
        hft.hyper(hft.from_torchopt(torchopt.adam, lr=1e-3), by=hft.sgd(lr=1e-3), over="lr"),
        hft.hyper(hft.sgd(lr=1e-3), by=hft.from_torchopt(torchopt.adam, lr=1e-3), over="lr"),
    ):
        p, state = params, opt.init(params)
        for x in data:
            p, state = opt.update(torch.func.grad(loss)(p, x), state, p)
        assert state.tuned["lr"].item() > 1e-3


@pytest.mark.parametrize(
    ("factory", "options", "name"),
    [
        (torchopt.adam, {}, "betas"), (torchopt.rmsprop, {}, "alpha"),
        (torchopt.sgd, {"weight_decay": 0.1}, "weight_decay"), (torchopt.sgd, {"momentum": 0.9}, "dampening"),
    ],
)  # fmt: skip
def test_what_torchopt_cannot_differentiate_is_named(factory, options, name):
    opt = hft.from_torchopt(factory, lr=0.1, **options)
    text = f"takes {name} as a plain number: it cannot be differentiated in.*open are .*lr"
    with pytest.raises(TypeError, match=text):
        hft.hypergradient(opt, loss, lambda p: loss(p, batches(1)[0]), start(), batches(2), over=name)
    tuned = hft.hyper(opt, by=hft.sgd(lr=0.1), over=name)
    with pytest.raises(TypeError, match=text):
        tuned.update(start(), tuned.init(start()), start())


def test_vmap_over_torchopt_is_refused_by_name():
    opt, data, w = hft.from_torchopt(torchopt.adam, lr=0.1), batches(2), start()
    with pytest.raises(TypeError, match=r"cannot be vmapped over \['lr'\]; loop instead"):
        torch.func.vmap(lambda lr: train(opt, opt.hparams | {"lr": lr}, w, data)[0])(torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("factory", [lambda: hft.to_torchopt(hft.adam(lr=0.1)), lambda: torchopt.adam(0.1)])
def test_a_leaf_that_is_none_stays_none(factory):
    made, params = factory(), {"a": torch.ones(2), "b": None, "c": (), "d": [torch.ones(3), None]}
    updates, _ = made.update(params, made.init(params), params=params)
    assert (updates["b"], updates["c"], updates["d"][1]) == (None, (), None)
    for found in (updates["a"], updates["d"][0]):
        torch.testing.assert_close(found, torch.full_like(found, -0.1))


# -- without params ---------------------------------------------------------------------------------------------------

W0 = start()

#: Rules that do not look at params but for weight decay.
BLIND = [hft.sgd, hft.adam, hft.adamw, hft.lion, hft.rmsprop, hft.adagrad, hft.adamax, hft.nadam, hft.radam, hft.signum]
WRAPPED: dict[str, Callable[[hft.Optimizer], hft.Optimizer]] = {
    "bare": lambda opt: opt,
    "clipped": lambda opt: hft.clipped(hft.damped(opt, 0.5), 0.3),
    "scheduled": lambda opt: hft.scheduled(opt, lr=lambda t: 0.5**t),
    "lr of 0": lambda opt: hft.scheduled(opt, lr=lambda t: 0.0 * t),
}


@st.composite
def blind(draw: Any) -> hft.Optimizer:
    make = draw(st.sampled_from(BLIND))
    rule = make(**draw(strategies.options(make, weight_decay=st.just(0.0))))
    return WRAPPED[draw(st.sampled_from([*WRAPPED]))](rule)


def without_params(opt: hft.Optimizer, run: strategies.Run) -> None:
    made, params = hft.to_torchopt(opt), run.params
    with_params = without = made.init(params)
    for grads in run.grads:
        updates, without = made.update(grads, without)
        want, with_params = made.update(grads, with_params, params=params)
        found = zip(*map(tree.leaves, (updates, want, grads)), strict=True)
        assert all((u is None) == (v is None) == (g is None) for u, v, g in found)
        assert all(type(u) is torch.Tensor for u in tree.leaves(updates) if u is not None)
        # (W - step) - W has the rounding of W, at most 2^-53 * 4 here, and 2^-53 of the step.
        assert_moves(updates, want, 2e-15)
        assert_moves(without, with_params, 0.0)
        params = tree.map_tree(lambda p, u: p if u is None else p + u, params, want)


def assert_moves(a: Any, b: Any, close: float) -> None:
    pairs = [(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True) if x is not None]
    assert all(largest_difference(x, y) <= close for x, y in pairs)


trees = strategies.runs(max_steps=3)


@settings(max_examples=40)
@given(opt=blind(), run=trees)
def test_without_params_an_update_is_what_it_is_with_them(opt: hft.Optimizer, run: strategies.Run):
    without_params(opt, run)


def test_without_params_of_an_anchor_without_strength_and_of_torchopts_own():
    run = strategies.Run(W0, [start()] * 3)
    for opt in (hft.l2sp(hft.sgd(lr=0.1), W0, strength=0.0), hft.from_torchopt(torchopt.adam, lr=0.1, eps=1e-2)):
        without_params(opt, run)


@settings(max_examples=40)
@given(data=st.data(), run=trees)
def test_updates_that_are_applied_are_the_optimizers(data: Any, run: strategies.Run):
    """For any optimizer below any combinators, and again as one of ours: there and back."""
    pure = data.draw(strategies.optimizers(run.params, depth=2))
    made, params = hft.to_torchopt(pure), run.params
    state, want, its_state = made.init(params), params, pure.init(params)
    for g in run.grads:
        updates, state = made.update(g, state, params=params)
        params = tree.map_tree(lambda p, u: p if u is None else p + u, params, updates)
        want, its_state = pure.update(g, its_state, want)
    back = hft.from_torchopt(lambda: hft.to_torchopt(pure))
    # A step rounds W twice more, W + (W' - W); a rule divides by 0.01 or more.
    for found in (params, run.by(back)[0]):
        assert largest_difference(found, want) <= CLOSE


@settings(max_examples=30)
@given(
    which=st.sampled_from([(torchopt.sgd, hft.sgd), (torchopt.rmsprop, hft.rmsprop), (torchopt.adagrad, hft.adagrad)]),
    data=st.data(), run=strategies.runs(none=False),
)  # fmt: skip
def test_from_torchopt_is_ours(which: Any, data: Any, run: strategies.Run):
    theirs, ours = which
    own = {"lr", "momentum", "weight_decay", "alpha", "eps", "lr_decay", "initial_accumulator_value"}
    options = {name: x for name, x in data.draw(strategies.options(ours)).items() if name in own}
    a, b = run.by(hft.from_torchopt(theirs, **options))[0], run.by(ours(**options))[0]
    # Numbers are float32 in places there: 6e-8 of a step of some tenths, divided by an eps of 0.01.
    assert largest_difference(a, b) <= 1e-6


#: Those that do, and what they do first with the values.
SEEING = {
    "adamw": (hft.adamw(lr=0.1), "mul"),
    "warm-up": (hft.scheduled(hft.adamw(lr=0.1), weight_decay=lambda t: t.clamp(max=1)), "mul"),  # none at first
    "tuned": (hft.adamw(lr=0.1, weight_decay=torch.tensor(0.0, requires_grad=True)), "mul"),
    "projected": (hft.projected(hft.sgd(lr=0.1), W0, radius=1.0), "abs"),
    "ftp": (hft.ftp(hft.sgd(lr=0.1), W0), "abs"),
    "cautious_decay": (hft.cautious_decay(hft.sgd(lr=0.1), W0), "mul"),
    "digrap": (hft.digrap(hft.sgd(lr=0.1), W0), "mul"),
    "hyper": (hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.1), over="lr"), "the state"),
    "torchopt": (hft.from_torchopt(torchopt.sgd, lr=0.1, weight_decay=0.1), "mul"),
}


@pytest.mark.parametrize("name", SEEING)
def test_where_params_are_needed_the_error_says_so(name):
    opt, what = SEEING[name]
    made, grads = hft.to_torchopt(opt), start()
    state = made.init(start())
    if name == "warm-up":
        _, state = made.update(grads, state)
    with pytest.raises(
        ValueError,
        match=rf"needs params: update\(grads, state, params=params\). .* asked for in '{what}': by weight decay",
    ):
        made.update(grads, state)


def own(rule):
    """An optimizer without a state, by what it makes of the weights and gradients of a leaf."""

    def update(grads, state, params, hparams=None):
        return {name: rule(w, grads[name], params) for name, w in params.items()}, state

    return hft.Optimizer(lambda params, hparams=None: (), update, {})


@pytest.mark.parametrize(
    "rule",
    [
        lambda w, g, params: w - torch.where(w > 0, g, -g),
        lambda w, g, params: g - w,
        lambda w, g, params: w + w,
        lambda w, g, params: w * 2 - g,
        lambda w, g, params: w + torch.ones(3, 3, 4).double() * g,  # another shape
        lambda w, g, params: torch.add(w, w, alpha=-1),
        lambda w, g, params: w - g * torch.stack([w, w]).sum(),
        lambda w, g, params: torch.where(w > 0, w, w - g),
        lambda w, g, params: w - 0 * params["b" if w is params["w"] else "w"].sum(),
        lambda w, g, params: params["w"] - g,  # of another leaf
        lambda w, g, params: g,
        lambda w, g, params: w.sub_(g),
        lambda w, g, params: w - g * float(w.mean()),
        lambda w, g, params: w - torch.from_numpy(w.numpy()),
        lambda w, g, params: w.data - g,
        # A transform takes the tensor without asking its class: the values are on no device.
        lambda w, g, params: w - torch.func.grad(lambda x: (x**2).sum())(w),
        lambda w, g, params: w - g * torch.func.vmap(lambda x: (x > 0).double().sum())(w[None])[0],
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_no_rule_that_looks_at_params_goes_unnoticed(rule):
    made = hft.to_torchopt(own(rule))
    made.update(start(), (), params=start())
    with pytest.raises((ValueError, RuntimeError), match="needs params|meta"):
        made.update(start(), ())


def test_a_place_of_one_leaf_is_not_known_from_that_of_another():
    made = hft.to_torchopt(own(lambda w, g, params: w - (params["a"] - params["b"])))
    with pytest.raises(ValueError, match="asked for in 'sub'"):
        made.update({"a": torch.ones(2), "b": torch.ones(2)}, ())


@pytest.mark.parametrize(
    ("rule", "move"),
    [
        (lambda w, g: w - 3 * ((w + g) * 1.0 - w), lambda g: -3 * g),
        (lambda w, g: -2 * g + w, lambda g: -2 * g),
        (lambda w, g: torch.where(g > 0, w, w - g), lambda g: torch.where(g > 0, 0.0, -g)),
        (lambda w, g: w.clone().to(g.dtype) - torch.zeros_like(w) - 0 * w - g, lambda g: -g),
    ],
)
def test_what_a_rule_may_do_to_params_that_are_not_known(rule, move):
    g = start()
    updates, _ = hft.to_torchopt(own(lambda w, g, params: rule(w, g))).update(g, ())
    torch.testing.assert_close(updates, {name: move(x) for name, x in g.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd], ids=["reverse", "forward"])
def test_updates_without_params_are_differentiable(transform):
    """In their gradients; with and without params to the same numbers."""
    made, x = hft.to_torchopt(hft.adam(lr=0.1, eps=1e-2, weight_decay=0.0)), start()["b"]

    def trained(x, **params):
        state, total = made.init(torch.zeros_like(x)), torch.zeros_like(x)
        for i in range(3):
            updates, state = made.update(x * (i + 1), state, **params)
            total = total + updates
        return total.square().sum()

    a, b = transform(trained)(x), transform(lambda x: trained(x, params=torch.zeros_like(x)))(x)
    assert a.abs().min() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_the_state_of_an_optimizer_in_place_has_no_graph():
    """Otherwise each step would keep those before it."""
    w = torch.nn.Parameter(torch.ones(3))
    opt = torchopt.Optimizer([w], hft.to_torchopt(hft.sgd(lr=0.1, momentum=0.9, weight_decay=0.1)))
    for _ in range(2):
        opt.zero_grad()
        w.square().sum().backward()
        opt.step()
    assert (w.requires_grad, w.is_leaf) == (True, True)
    assert not opt.state_dict()[0].momentum_buffer[0].requires_grad


@pytest.mark.parametrize(
    "pure",
    [hft.hyper(hft.sgd(lr=0.1, weight_decay=0.1), by=hft.sgd(lr=0.1), over="weight_decay"), hft.adan(lr=0.1)],
    ids=["hyper", "adan"],
)
def test_a_state_keeps_what_an_optimizer_in_place_writes_over(pure):
    """Params, and gradients, which its ``zero_grad`` fills with zeros."""
    w, p = start()["b"], torch.nn.Parameter(start()["b"])
    opt, state = torchopt.Optimizer([p], hft.to_torchopt(pure)), pure.init(w)
    for _ in range(4):
        opt.zero_grad()
        (p**4).sum().backward()
        opt.step()
        w, state = pure.update(4 * w**3, state, w)
    # Rounding of new params - params, added to params, of values of order 1, over four steps.
    torch.testing.assert_close(p.detach(), w, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("inplace", [False, True])
def test_updates_are_differentiable_in_params_where_asked_for(inplace):
    """By ``inplace=False``, or under a transform: d (W - lr (g + decay W)) / dW."""
    made = hft.to_torchopt(hft.sgd(lr=0.1, weight_decay=0.5))

    def moved(w):
        updates, _ = made.update(torch.ones(2), made.init(w), params=w, inplace=inplace)
        return torchopt.apply_updates(w, updates, inplace=False).sum()

    torch.testing.assert_close(torch.func.grad(moved)(torch.ones(2)), torch.full((2,), 0.95))
    if not inplace:
        w = torch.ones(2, requires_grad=True)
        torch.testing.assert_close(torch.autograd.grad(moved(w), w)[0], torch.full((2,), 0.95))


# -- in each of TorchOpt's forms of a training loop -------------------------------------------------------------------

STEPS = 8  # RAdam rectifies from its 6th on


class Net(nn.Module):
    """One parameter is never used, one in every other step: their gradients are ``None``."""

    def __init__(self) -> None:
        super().__init__()
        for name, w in (start() | {name: torch.ones(2).double() for name in ("seldom", "unused")}).items():
            self.register_parameter(name, nn.Parameter(w))

    def forward(self, x: Tensor, t: int) -> Tensor:
        value = loss({"w": self.w, "b": self.b}, x)
        return value * self.seldom.sin().sum() if t % 2 else value


def data() -> Iterator[tuple[Tensor, int]]:
    return ((x, t) for t, x in enumerate(batches(STEPS)))


def functional(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    params = dict(net.named_parameters())
    state = opt.init(params)
    for x, t in data():
        value = torch.func.functional_call(net, params, (x, t))
        grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        updates, state = opt.update(dict(zip(params, grads, strict=True)), state, params=params, inplace=inplace)
        assert [name for name, u in updates.items() if u is None] == ["unused"] if t % 2 else ["seldom", "unused"]
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params


def func_optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped, names = torchopt.FuncOptimizer(opt, inplace=inplace), [name for name, _ in net.named_parameters()]
    params = tuple(net.parameters())
    for x, t in data():
        value = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x, t))
        params = wrapped.step(value, params)
    return dict(zip(names, params, strict=True))


def optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped = torchopt.Optimizer(net.parameters(), opt)
    for x, t in data():
        wrapped.zero_grad(set_to_none=True)
        net(x, t).backward()
        wrapped.step()
    return dict(net.named_parameters())


def meta_optimizer(opt: Any, net: Net, inplace: bool) -> dict[str, Tensor]:
    wrapped = torchopt.MetaOptimizer(net, opt)
    for x, t in data():
        wrapped.step(net(x, t))
    return dict(net._parameters)


#: Each with what its ``inplace`` may be.
FORMS = [*product((functional, func_optimizer), (False, True)), (optimizer, True), (meta_optimizer, False)]

#: A step rounds W about four times, in W + ((W - d) - W): 4 * 2^-53 * 4 = 2e-15 where |W| < 4. The gradients carry that
#: on: seven times the 1.4e-14 of eight steps.
TOLERANCE = 1e-13

# test_torch_options.py compares their options.
TORCHS = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True, "maximize": True}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2, "decoupled_weight_decay": True, "weight_decay": 1e-2}),
}


@pytest.mark.parametrize(("form", "inplace"), FORMS)
@pytest.mark.parametrize("name", TORCHS)
def test_it_is_that_of_torch_optim(name: str, form: Callable[..., dict[str, Tensor]], inplace: bool):
    (peer, options), net = TORCHS[name], Net()
    reference = peer(net.parameters(), **options)
    for x, t in data():
        reference.zero_grad(set_to_none=True)
        net(x, t).backward()
        reference.step()
    got = form(hft.to_torchopt(getattr(hft, name)(**options)), Net(), inplace)
    want = dict(net.named_parameters())
    torch.testing.assert_close({key: got[key] for key in want}, want, rtol=0, atol=TOLERANCE)
