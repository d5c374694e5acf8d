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
from hyperopt_ftp import tree


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
