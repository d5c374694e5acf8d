"""Lookahead is Algorithm 1, and its limits."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies

from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, gradients, run


def algorithm_1(opt: hft.Optimizer, run: strategies.Run, k: int, alpha: float) -> tuple[Any, Any]:
    """Of arXiv 1907.08610; the fast and the slow weights."""
    slow = fast = run.params
    state = opt.init(slow)
    for i, g in enumerate(run.grads, start=1):
        fast, state = opt.update(g, state, fast)
        if i % k == 0:
            slow = fast = tree.map_tree(lambda a, b: a + alpha * (b - a), slow, fast)
    return fast, slow


# A base that goes on from weights in its state is refused.
rules = strategies.rules().filter(lambda opt: not opt.weights_in_state)


@given(run=strategies.runs(none=False, max_steps=7), opt=rules, k=st.integers(1, 4), alpha=strategies.between(0.0, 1.0))
def test_lookahead_is_algorithm_1(run: strategies.Run, opt: hft.Optimizer, k: int, alpha: float):
    params, state = run.by(hft.lookahead(opt, k, alpha))
    # A combination is rounded three times, each k steps; a gradient is divided by 0.01 or more, so rules carry on
    # what is off at most a hundred times.
    assert largest_difference((params, state.slow), algorithm_1(opt, run, k, alpha)) <= 100 * CLOSE


def test_limits_of_lookahead():
    grads, base = gradients(6), hft.adam(lr=0.1)
    assert largest_difference(run(hft.lookahead(base, 3, 1.0), grads)[0], run(base, grads)[0]) <= CLOSE
    assert largest_difference(run(hft.lookahead(base, 3, 0.0), grads)[0], start()) == 0
    without = [*gradients(2), {**gradients(3)[2], "b": None}]  # at the synchronisation
    params, state = run(hft.lookahead(base, 3, 0.5), without)
    assert torch.equal(params["b"], run(base, without)[0]["b"])
    assert torch.equal(state.slow["b"], start()["b"])
    assert torch.equal(state.slow["w"], params["w"])
