"""What goes from step to step: one vector, pieces or trees give the same numbers, and only where a rule is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.core.carry import Entrywise, Trees, carry_of
from hyperopt_ftp.optimizers import by_rule, to_tensors

F64 = torch.float64
AGAIN = hft.Unroll(checkpoint=1)
both = pytest.mark.parametrize("strategy", [None, AGAIN], ids=["default", "points"])


def vectors(count: int) -> dict[str, Tensor]:
    """Small tensors of as many shapes as there are."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(2, 3), (), (4,), (1, 2, 2), (3,), (2,)]
    return {f"w{i}": torch.randn(shapes[i], dtype=F64, generator=generator) for i in range(count)}


def quartic(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.stack([((w - x[i]) ** 4).sum() + (w * x[i]).sin().sum() for i, w in enumerate(p.values())]).sum()


def leaves_of(x: Any) -> list[Tensor]:
    return [y for y in tree.leaves(x) if isinstance(y, Tensor)]


JOINED = {
    "sgd": (hft.sgd(lr=0.01, momentum=0.9, weight_decay=0.1), 5),
    "nesterov": (hft.sgd(lr=0.01, momentum=0.9, nesterov=True), 6),
    "plain sgd": (hft.sgd(lr=0.01), 5),
    "adam": (hft.adam(lr=0.01), 2),
    "adamw": (hft.adamw(lr=0.01), 6),
    "maximize": (hft.adam(lr=0.01, maximize=True), 3),
}


def result(opt: Any, count: int, strategy: Any, resumed: bool, per_layer: bool) -> tuple[list[Tensor], list[Tensor]]:
    """All values of a training, and derivatives of a number made of them in all that it is given."""
    params = {name: w.requires_grad_() for name, w in vectors(count).items()}
    hparams = tree.map_tree(lambda x: x.detach().clone().requires_grad_(), opt.hparams)
    if per_layer:
        rates = {name: 0.01 + 0.002 * i for i, name in enumerate(params)}
        hparams["lr"] = {name: torch.tensor(lr, dtype=F64, requires_grad=True) for name, lr in rates.items()}
    data, state = [torch.linspace(-1, 1, count, dtype=F64) + 0.1 * k for k in range(5)], None
    if resumed:
        before = hft.train(opt, quartic, vectors(count), data[:2]).state
        state = tree.map_tree(lambda x: x.requires_grad_() if x.is_floating_point() else x, before)
    run = hft.train(opt, quartic, params, data, hparams=hparams, state=state, strategy=strategy)
    ends = [x for x in leaves_of((run.params, run.state)) if x.requires_grad]
    value = torch.stack([(x.cos() * (i + 1)).sum() for i, x in enumerate(ends)]).sum()
    asked = [x for x in leaves_of((params, hparams, state)) if x.requires_grad]
    slopes = torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in leaves_of(run)], [*slopes]


@settings(max_examples=24)
@given(name=st.sampled_from(sorted(JOINED)), more=st.integers(0, 4), resumed=st.booleans(), per_layer=st.booleans())
def test_one_vector_has_the_values_of_trees_bit_for_bit(name: str, more: int, resumed: bool, per_layer: bool):
    opt, count = JOINED[name]
    count = min(count + more, 6)
    params = vectors(count)
    carried = carry_of(opt, params, opt.init(params) if resumed else None, opt.hparams, opt.update, steps=5)
    assert [len(x) for x in carried.begin()[0]] == [sum(w.numel() for w in params.values())]  # it is one
    values, slopes = result(opt, count, None, resumed, per_layer)
    want, slopes_wanted = result(opt, count, AGAIN, resumed, per_layer)
    assert len(values) == len(want)
    assert all(torch.equal(x, y) for x, y in zip(values, want, strict=True))
    assert sum(bool(x.any()) for x in slopes) > count  # not only of the params
    for x, y in zip(slopes, slopes_wanted, strict=True):  # sums over layers, in another order
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-15)


def test_one_step_of_a_short_rule_is_not_worth_a_vector():
    opt = hft.sgd(lr=0.1)
    pieces = [len(carry_of(opt, vectors(5), None, opt.hparams, opt.update, steps).begin()[0]) for steps in (1, 2)]
    assert pieces == [5, 1]


# -- only where the rule behind an update, and the state, are known ---------------------------------------------------


@both
@pytest.mark.parametrize("derived", [False, True], ids=["values", "derived"])
def test_an_update_around_another_is_not_taken_for_its_rule(strategy: Any, derived: bool):
    """``functools.wraps`` copies all that another function has, but not what it does."""
    base = hft.sgd(lr=0.1)

    @functools.wraps(base.update)
    def moves_nothing(g, s, p, h=None):
        return base.update(0 * g, s, p, h)

    w = torch.ones(2).requires_grad_(derived)
    run = hft.train(base._replace(update=moves_nothing), lambda p, x: (p * x).sum(), w, [1.0] * 3, strategy=strategy)
    assert torch.equal(run.params, torch.ones(2))


@both
def test_an_init_of_ones_own_is_called(strategy: Any):
    base = hft.sgd(lr=0.1, momentum=0.9)

    def init(p, h=None):
        return base.init(p, h)._replace(step=torch.tensor(1), momentum_buffer=torch.ones(2))

    def loss(p, x):
        return (p * x).sum()

    opt, w = base._replace(init=init), torch.zeros(2)
    given = hft.train(opt, loss, w, [1.0], state=opt.init(w), strategy=strategy)
    assert torch.equal(hft.train(opt, loss, w, [1.0], strategy=strategy).params, given.params)
    torch.testing.assert_close(given.params, torch.full((2,), -0.19))


@both
@pytest.mark.parametrize(
    "opt",
    [hft.sgd(momentum=0.9), hft.adam(), hft.rmsprop(centered=True), hft.adamax(), hft.adan(), hft.radam()],
    ids=["sgd", "adam", "rmsprop", "adamax", "adan", "radam"],
)
def test_params_without_dimensions_keep_their_dtype(opt: Any, strategy: Any):
    """Arithmetic of a 0-d float32 tensor and a float64 number, as an hparam is, would be float64."""
    h = tree.map_tree(lambda x: x.clone().requires_grad_(), opt.hparams)
    w = torch.tensor(1.0)
    run = hft.train(opt, lambda p, x: (p - x) ** 2, w, [0.0] * 3, hparams=h, strategy=strategy)
    dtypes = {x.dtype for x in leaves_of((run.params, run.state, run.losses)) if x.is_floating_point()}
    assert dtypes == {torch.float32}


def test_params_of_two_dtypes_are_no_vector():
    w = {str(i): torch.full((2,), 0.1 + i, dtype=torch.float32 if i % 2 else F64) for i in range(8)}
    run = hft.train(hft.adam(lr=0.1), lambda p, x: sum((y**2).sum().double() for y in p.values()), w, [0.0] * 8)
    for name, x in w.items():
        alone = hft.train(hft.adam(lr=0.1), lambda p, x: (p**2).sum(), x, [0.0] * 8).params
        assert run.params[name].dtype == x.dtype
        assert torch.equal(run.params[name], alone)


@both
def test_a_count_that_requires_grad_keeps_its_derivative(strategy: Any):
    opt, w = hft.adam(lr=0.1), torch.ones(2, dtype=F64)

    def end(step):
        state = opt.init(w)._replace(step=step)
        run = hft.train(opt, lambda p, x: ((p - x) ** 2).sum(), w, [0.0] * 2, state=state, strategy=strategy)
        return run.params.sum()

    step = torch.tensor(2.0, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(step), step)
    with torch.no_grad():
        want = (end(step + 1e-5) - end(step - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, want, rtol=1e-7, atol=0)


@pytest.mark.parametrize("opt", [hft.sgd(), hft.adam()], ids=["sgd", "adam"])
def test_a_sparse_gradient_names_its_leaf(opt: Any):
    def loss(p, x):
        return (F.embedding(torch.tensor([0]), p["table"], sparse=True) ** 2).sum()

    with pytest.raises(TypeError, match=r"the gradient of 'table' is sparse .*to_dense"):
        hft.train(opt, loss, {"table": torch.ones(3, 2)}, [0.0])


class Kept(NamedTuple):
    m: Any


def test_rules_of_others_go_by_trees():
    params = {"a": torch.ones(2)}

    def kept(rule: Callable[..., Any]) -> type:
        opt = by_rule(rule, Kept, to_tensors(lr=0.1), entrywise=True)
        return type(carry_of(opt, params, None, {}, opt.update, steps=2))

    assert kept(lambda w, g, s, h, t: (w - g, s)) is Trees
    sgd = hft.sgd()
    assert type(carry_of(sgd, params, None, sgd.hparams, sgd.update, steps=2)) is Entrywise
