"""Trees are walked as pytree walks them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from hyperopt_ftp import tree


class Pair(NamedTuple):
    first: Any
    second: Any


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
