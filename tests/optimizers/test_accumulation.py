"""Accumulated gradients are one update on their mean."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import CLOSE, largest_difference, strategies


@st.composite
def windows(draw: Any) -> tuple[hft.Optimizer, Any, list[list[Any]]]:
    """An optimizer below any combinators, params, and two windows of gradients."""
    params, every = draw(strategies.params()), draw(st.integers(1, 4))
    grads = [[draw(strategies.gradients(params, none=False)) for _ in range(every)] for _ in range(2)]
    return draw(strategies.optimizers(params, depth=2)), params, grads


@given(case=windows())
def test_accumulating_is_one_update_on_the_mean(case: tuple[hft.Optimizer, Any, list[list[Any]]]):
    plain, params, grads = case
    opt = hft.accumulated(plain, len(grads[0]))
    state, want, its_state = opt.init(params), params, plain.init(params)
    for window in grads:
        for g in window[:-1]:
            new, state = opt.update(g, state, params)
            assert largest_difference((new, state.base), (params, its_state)) == 0  # nothing moves
        params, state = opt.update(window[-1], state, params)
        mean = tree.map_tree(lambda *g: sum(g) / len(g), *window)
        want, its_state = plain.update(mean, its_state, want)
        assert largest_difference((params, state.base), (want, its_state)) == 0
        assert all((x == 0).all() for x in tree.leaves(state.total))


@given(run=strategies.runs(none=False, max_steps=1), opt=strategies.rules(), every=st.integers(2, 5))
def test_the_same_gradient_again_and_again_is_itself(run: strategies.Run, opt: hft.Optimizer, every: int):
    many = strategies.Run(run.params, run.grads * every)
    # The sum is rounded at each gradient, and what a rule divides by is 0.01 or more.
    assert largest_difference(many.by(hft.accumulated(opt, every))[0], run.by(opt)[0]) <= CLOSE * every * 100
