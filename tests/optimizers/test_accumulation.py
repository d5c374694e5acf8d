"""Accumulated gradients are one update on their mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import ANCHOR
from ..support.problems import largest_difference, start
from ..support.updates import gradients

BASES = {
    "adam": lambda: hft.adam(lr=0.1),
    "clipped": lambda: hft.clipped(hft.sgd(lr=0.1, momentum=0.9), 0.5),
    "ftp": lambda: hft.ftp(hft.adam(lr=0.1), ANCHOR),
    "hyper": lambda: hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=1e-2), over="lr"),
    "partition": lambda: hft.partition({"w": hft.adam(lr=0.1), "b": hft.frozen()}, lambda path: path),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_accumulating_is_one_update_on_the_mean(base: Callable[[], hft.Optimizer]):
    grads, every = gradients(9), 3
    windows = [grads[i : i + every] for i in range(0, 9, every)]
    means = [tree.map_tree(lambda *g: (g[0] + g[1] + g[2]) / 3, *w) for w in windows]
    opt, plain = hft.accumulated(base(), every), base()
    params, state = start(), opt.init(start())
    want, its_state = start(), plain.init(start())
    for window, mean in zip(windows, means, strict=True):
        for g in window[:-1]:
            new, state = opt.update(g, state, params)
            assert largest_difference((new, state.base), (want, its_state)) == 0  # nothing moves
            params = new
        params, state = opt.update(window[-1], state, params)
        want, its_state = plain.update(mean, its_state, want)
        assert largest_difference((params, state.base), (want, its_state)) == 0
        assert all((x == 0).all() for x in tree.leaves(state.total))
