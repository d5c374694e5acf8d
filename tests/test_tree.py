"""Trees are walked as pytree walks them."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree as pytree

import hyperopt_ftp as hft
from hyperopt_ftp import testing as checks
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies


class Pair(NamedTuple):
    first: Any
    second: Any


class Checked(Pair):
    """As torch's ``PackedSequence``."""

    def __new__(cls, first: Any, second: Any) -> Checked:
        if isinstance(first, bool):
            raise TypeError("no flags")
        return super().__new__(cls, first, second)


class Summed(Pair):
    """With an attribute that is made of the values."""

    def __init__(self, first: Any, second: Any) -> None:
        self.total = first + second


class Named(dict):
    """Of a class of its own: a leaf to pytree."""


LEAVES = st.sampled_from(
    [torch.zeros(2), torch.ones(()), torch.nn.Parameter(torch.ones(1)), 3, 0.5, True, None, "word"]
)


def nested(inner: Any) -> Any:
    keys = st.sampled_from(["a", "b.c", 3])
    return st.one_of(
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=2).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=1).map(Named),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.tuples(inner, inner).map(lambda values: Pair(*values)),
        inner.map(lambda x: OrderedDict(pair=Pair(x, x))),
        inner.map(lambda x: torch.return_types.max((x, x))),
    )


TREES = st.recursive(LEAVES, nested, max_leaves=6)


def same(a: list[Any], b: list[Any]) -> bool:
    pairs = zip(a, b, strict=len(a) == len(b))
    return len(a) == len(b) and all(x is y or (not isinstance(x, torch.Tensor) and x == y) for x, y in pairs)


@given(value=TREES)
def test_leaves_and_the_way_back(value: Any):
    leaves, rebuild = tree.flatten(value)
    wanted, spec = pytree.tree_flatten(value)
    assert same(leaves, wanted)
    numbers = list(range(len(leaves)))
    assert rebuild(numbers) == pytree.tree_unflatten(numbers, spec)
    assert type(rebuild(leaves)) is type(value)


@pytest.mark.parametrize("around", [lambda x: x, lambda x: OrderedDict(a=[x]), lambda x: Pair(x, 0)])
def test_flags_in_a_namedtuple_that_checks_its_values(around: Any):
    flags = tree.map_tree(lambda x: True, around(Checked(1, torch.ones(2))))
    assert flags == tree.map_tree(lambda x: True, around((1, 2)))
    assert "Checked(first=True, second=True)" in repr(flags)
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    assert type(tree.map_tree(lambda x: x is not None, packed)) is PackedSequence


def test_what_a_namedtuple_makes_of_its_values_is_made_anew():
    new = tree.map_tree(lambda x: 2 * x, [Summed(1, 2)])[0]
    assert (type(new), new, new.total) == (Summed, (2, 4), 6)
    assert tree.replaced(Summed(1, 2), "1", 5).total == 6


@given(value=TREES, like=TREES)
def test_one_tree_along_another(value: Any, like: Any):
    for pair in ((value, like), (value, value), (pytree.tree_map(lambda x: [x], like), like)):
        results = []
        for way in (lambda a, b: tree.aligned(a, b), lambda a, b: pytree.tree_structure(b).flatten_up_to(a)):
            try:
                results.append(way(*pair))
            except ValueError:
                results.append(None)
        if results[1] is None:
            assert results[0] is None
        else:
            assert same(*results) or results[0] == results[1]


class Batch(UserDict):
    """With attributes, as what a tokenizer returns."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


def test_a_userdict_is_a_tree_of_its_class():
    given = Batch({"x": torch.ones(2), "more": {"n": 3}})
    assert len(tree.leaves(given)) == 2
    doubled = tree.map_tree(lambda x: x * 2, given)
    assert type(doubled) is Batch
    assert doubled.x.tolist() == [2.0, 2.0]
    assert given.more == {"n": 3}
    assert tree.aligned(Batch({"more": {"n": 5}, "x": 4}), given) == [4, 5]
    assert tree.fitted(UserDict(given), tree.Structure(given)) is None
    assert tree.replaced(given, "more.n", 7).more == {"n": 7}
    assert given.more == {"n": 3}


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward(), hft.Implicit(tolerance=9)])
@pytest.mark.filterwarnings("ignore:Implicit. training")
def test_batches_may_be_userdicts(strategy):
    def grads(kind):
        lr, x = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 1.0))
        run = hft.train(
            hft.sgd(), lambda p, b: (p - b["x"]) ** 2, 0 * x.detach(), [kind({"x": x})] * 3, hparams={"lr": lr},
            strategy=strategy,
        )  # fmt: skip
        wanted = (lr,) if isinstance(strategy, hft.Forward) else (lr, x)
        return torch.autograd.grad(run.params, wanted)

    assert grads(Batch) == grads(dict)


# -- trees of tensors -------------------------------------------------------------------------------------------------

TENSORS = strategies.params()


@given(value=TENSORS)
def test_maps_compose_and_that_of_nothing_is_nothing(value: Any):
    double, shifted = (lambda x: 2 * x), (lambda x: x + 1)
    assert checks.same(tree.map_tree(lambda x: x, value), value)
    twice = tree.map_tree(double, tree.map_tree(shifted, value))
    assert checks.same(twice, tree.map_tree(lambda x: double(shifted(x)), value))
    assert checks.same(tree.map_tree(torch.add, value, value), tree.map_tree(double, value))


@given(value=TENSORS)
def test_names_are_paths_that_lead_there(value: Any):
    named = tree.named(value)
    assert [id(x) for _, x in named] == [id(x) for x in tree.leaves(value)]
    assert len({name for name, _ in named}) == len(named)
    for name, x in named:
        assert not name or tree.entry(value, name) is x


def test_a_number_of_a_named_tuple_is_tuned_by_the_name_of_its_field():
    lr, ones = Pair(torch.tensor(0.1), torch.tensor(0.2)), Pair(torch.ones(2), torch.ones(2))
    opt = hft.hyper(hft.sgd(lr=lr), by=hft.sgd(lr=0.01), over="lr.first")
    params, state = ones, opt.init(ones)
    for _ in range(2):
        params, state = opt.update(ones, state, params)
    torch.testing.assert_close(state.tuned["lr.first"], torch.tensor(0.12))  # 0.1 + 0.01 * 1 * 2 gradients of 1


@given(value=TENSORS, data=st.data())
def test_what_is_replaced_is_one_leaf_and_not_in_place(value: Any, data: Any):
    before = tree.leaves(value)
    i = data.draw(st.integers(0, len(before) - 1))
    name, new = tree.named(value)[i][0], torch.ones(7)
    if name:
        found = tree.leaves(tree.replaced(value, name, new))
        assert [id(x) for x in found] == [id(new if k == i else x) for k, x in enumerate(before)]
        assert [id(x) for x in tree.leaves(value)] == [id(x) for x in before]


@given(value=TENSORS, data=st.data())
def test_what_is_picked_and_put_back_is_what_it_was(value: Any, data: Any):
    names = data.draw(st.sets(st.sampled_from([name for name, _ in tree.named(value)])))
    part = tree.pick(value, dict.fromkeys(names))
    assert part.keys() == names
    assert checks.same(tree.put(value, part), value)
    doubled = tree.put(value, {name: 2 * x for name, x in part.items()})
    for name, x in tree.named(doubled):
        assert torch.equal(x, tree.by_path(value)[name] * (2 if name in names else 1))


@given(value=TENSORS)
def test_what_is_not_shared_is_the_same_in_memory_of_its_own(value: Any):
    half = tree.leaves(value)[::2]
    own = tree.unshared(value, half)
    assert checks.same(own, value)
    theirs = {x.data_ptr() for x in half if x.numel()}
    assert not theirs & {x.data_ptr() for x in tree.leaves(own) if x.numel()}
    kept = {id(x) for x in tree.leaves(value) if x.numel()} - {id(x) for x in half}
    assert kept <= {id(x) for x in tree.leaves(own)}
