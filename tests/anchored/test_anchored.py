"""The anchored family as pure functions: parity with the papers, limits, and DiGraP's hypergradient."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer

from ..support.draws import methods, normal, seeds, shapes
from ..support.family import FAMILY, PURE, WRONG_OPTIONS, Method
from ..support.problems import batches, largest_difference, loss, start
from ..support.trajectories import BASES, problem, tensors, trajectory

# Rounding of a step of two dozen operations, over 30 steps of values of order 1, where nothing is divided by less than
# 1e-3: 30 * 24 * 1e-16 * 1e3.
PARITY = 1e-10

bases = st.sampled_from(sorted(BASES))


def run(opt: Optimizer, weights, grads):
    state = opt.init(weights)
    for g in grads:
        weights, state = opt.update(g, state, weights)
        yield weights, state


@settings(max_examples=40)
@given(method=methods(PURE), base=bases, seed=seeds)
def test_equals_its_transcription_from_the_paper(method: Method, base: str, seed: int):
    anchor, first, grads = problem(seed)
    opt = method.held(BASES[base][0](), tensors(anchor))
    plain = run(BASES[base][0](), tensors(first), map(tensors, grads))
    apart = 0.0
    for (weights, _), expected, (free, _) in zip(
        run(opt, tensors(first), map(tensors, grads)), trajectory(method, base, seed), plain, strict=True
    ):
        assert largest_difference(weights, tensors(expected)) <= PARITY
        apart = max(apart, largest_difference(weights, free))
    assert apart > 1e-3  # it has done something


#: They read gradients, but for a decoupled L2-SP.
UPHILL = {"l2sp", "spd", "directed", "ftp", "digrap"}


@given(
    method=methods(PURE),
    around=st.sampled_from([lambda opt: opt, lambda opt: hft.clipped(hft.scheduled(opt, lr=lambda t: 1.0), 1e9)]),
    seed=seeds,
)
def test_a_base_that_maximizes_is_held_as_by_minus_the_gradient_or_refused(method: Method, around, seed: int):
    anchor, first, grads = problem(seed, 8)
    held = [
        functools.partial(method.held, around(hft.sgd(lr=0.1, maximize=up)), tensors(anchor)) for up in (True, False)
    ]
    if method.pure.__name__ in UPHILL and not method.options.get("decoupled"):
        with pytest.raises(ValueError, match="base has maximize=True, which goes up: take minus the loss"):
            held[0]()
        return
    turned = [{name: -x for name, x in tensors(g).items()} for g in grads]
    for (up, _), (down, _) in zip(
        run(held[0](), tensors(first), turned), run(held[1](), tensors(first), map(tensors, grads)), strict=True
    ):
        assert largest_difference(up, down) == 0


def test_every_pure_method_has_a_row():
    """Those of (base, anchor) that the package exports."""
    public = [f for name, f in vars(hft).items() if not name.startswith("_") and inspect.isfunction(f)]
    methods = {f for f in public if list(inspect.signature(f).parameters)[:2] == ["base", "anchor"]}
    assert len(methods) >= 7
    assert methods - {method.pure for method in FAMILY} == set()


@pytest.mark.parametrize("method", PURE, ids=str)
def test_a_call_as_of_a_class_says_which_is_the_pure_rule(method: Method):
    name = method.pure.__name__
    text = rf"{name}: missing .*'anchor'; {name}\(base, anchor\) is the pure rule"
    with pytest.raises(TypeError, match=text):
        method.pure(nn.Linear(2, 2).parameters())
    with pytest.raises(TypeError, match=rf"unexpected keyword argument 'lr'; .*; {name}\(base, anchor\) is the pure"):
        method.pure(nn.Linear(2, 2).named_parameters(), lr=0.1)


def test_at_the_anchor_there_is_no_direction_back_and_the_step_is_the_bases():
    """``d = 0``, as in a run's first step: neither the weights nor a derivative is 0 / 0."""
    w0, base = start(), hft.sgd(lr=0.1)
    g = torch.func.grad(loss)(w0, batches(1)[0])

    def first(omega):
        opt = hft.directed(base, w0, omega=0.5)
        return opt.update(g, opt.init(w0), w0, {**opt.hparams, "omega": omega})[0]

    omega = torch.tensor(0.5, dtype=torch.float64)
    assert largest_difference(first(omega), base.update(g, base.init(w0), w0)[0]) == 0
    assert torch.func.grad(lambda x: sum(w.sum() for w in first(x).values()))(omega) == 0


@given(method=st.sampled_from([m for m in FAMILY if m.zero or m.free]), base=bases, seed=seeds)
def test_no_strength_is_the_base_and_an_infinite_radius_up_to_rounding(method: Method, base: str, seed: int):
    anchor, first, grads = problem(seed, 16)
    make = BASES[base][0]
    held = run(
        method.held(make(), tensors(anchor), **(method.zero or method.free)), tensors(first), map(tensors, grads)
    )
    for (got, _), (expected, _) in zip(held, run(make(), tensors(first), map(tensors, grads)), strict=True):
        assert largest_difference(got, expected) <= (0 if method.zero else 1e-14)  # of W0 + (W - W0), 16 times


def sgd_like(base: Optimizer, anchor) -> Optimizer:
    """The update that Algorithm 1 differentiates: a plain SGD step, projected whatever the sign; base's state."""
    own = {"omega": hft.directed(base, anchor).hparams["omega"]}

    def update(grads, state, params, hparams=None):
        h = {**base.hparams, **own} if hparams is None else hparams
        new = {}
        for name, w in params.items():
            d = w - anchor[name]
            square = (d * d).sum()
            p = (grads[name] * d).sum() / torch.where(square == 0, 1.0, square) * d
            new[name] = w - h["lr"] * (grads[name] - h["omega"][name] * p)
        return new, state

    return Optimizer(base.init, update, {**base.hparams, **own})


@given(
    seed=st.integers(0, 2**16),
    lr=st.floats(1e-3, 0.3),
    omega_lr=st.floats(1e-3, 0.3),
    gradient=st.sampled_from(["paper", "exact"]),
    momentum=st.booleans(),
)
def test_digrap_is_hyper_of_directed(seed: int, lr: float, omega_lr: float, gradient: str, momentum: bool):
    """exact: the derivative of a plain SGD step as it was. paper: pulled back through SGD, whatever the base is."""
    if gradient == "exact":
        momentum = False
    anchor, first, grads = (list(map(tensors, x)) if isinstance(x, list) else tensors(x) for x in problem(seed, 12))
    zero = {name: torch.tensor(0.0, dtype=torch.float64) for name in anchor}
    base = hft.sgd(lr=lr, momentum=0.9 if momentum else 0.0)
    held = hft.directed(base, anchor, omega=zero)
    through = sgd_like(base, anchor) if gradient == "paper" else None
    tuned = hft.hyper(held, by=hft.adam(lr=omega_lr, eps=1e-16), over="omega", through=through)
    closed = hft.digrap(base, anchor, omega_lr=omega_lr, gradient=gradient)
    for (w, state), (expected, by_hyper) in zip(run(closed, first, grads), run(tuned, first, grads), strict=True):
        assert largest_difference(w, expected) <= 1e-9
        for name, omega in by_hyper.tuned["omega"].items():
            # Adam's direction is h / |h|: where h is nearly 0 its rounding counts most, 1e-16 / 1e-6 of its size.
            assert abs(state.rule[name]["omega"] - omega) <= 1e-9


@pytest.mark.parametrize("rule", [hft.spd, hft.directed, hft.l2sp])
def test_a_rule_without_a_learning_rate_goes_around_a_base_without_one(rule):
    """As around the bare base, since the tuned rate does not move."""
    w0 = torch.zeros(3, dtype=torch.float64)
    ends = []
    for base in (hft.sgd(lr=0.1), hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.0), over="lr")):
        opt = rule(base, w0)
        w = w0 + torch.arange(3.0, dtype=torch.float64)
        state = opt.init(w)
        for g in (w, -w, w + 1):
            w, state = opt.update(g, state, w)
        ends.append(w)
    assert torch.equal(*ends)


@pytest.mark.parametrize("method", PURE, ids=str)
def test_each_option_has_its_domain(method: Method):
    for name, value in method.options.items():
        for wrong, error, text in WRONG_OPTIONS[type(value)]:
            with pytest.raises(error, match=f"{name} must {text}"):
                method.held(hft.sgd(lr=1.0), torch.zeros(1), **{name: wrong})


@given(
    method=methods(PURE),
    shape=shapes,
    seed=seeds,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_the_base_of_a_rule_sees_16_bit_gradients_in_working_precision_and_shapes_and_dtypes_are_kept(
    method: Method, shape: tuple[int, ...], seed: int, dtype: torch.dtype
):
    seen = []

    def update(grads, state, params, hparams=None):
        seen.extend(g.dtype for g in grads.values())
        return params, state

    base = hft.sgd(lr=0.1)._replace(update=update)
    w0, w, g = ({"w": x.to(dtype)} for x in normal(seed, [shape] * 3))
    opt = method.held(base, w0)
    new, _ = opt.update(g, opt.init(w), w)
    assert seen == [torch.float32]
    assert (new["w"].shape, new["w"].dtype) == (w["w"].shape, dtype)
