"""Lookahead is Algorithm 1, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, gradients, run


def transcribed_lookahead(grads: list[Any], k: int, alpha: float) -> Any:
    """Algorithm 1 of arXiv 1907.08610 around SGD with momentum, on one tensor."""
    slow, i = start()["w"], 0
    momentum = torch.zeros_like(slow)
    while i < len(grads):
        fast = slow
        for g in grads[i : i + k]:
            momentum = 0.9 * momentum + g["w"]
            fast = fast - 0.1 * momentum
        if i + k > len(grads):
            return fast, slow
        slow, i = slow + alpha * (fast - slow), i + k
    return slow, slow


@pytest.mark.parametrize(("steps", "k", "alpha"), [(7, 3, 0.5), (6, 3, 0.8), (4, 1, 0.3)])
def test_lookahead_is_algorithm_1(steps: int, k: int, alpha: float):
    params, state = run(hft.lookahead(hft.sgd(lr=0.1, momentum=0.9), k, alpha), gradients(steps))
    fast, slow = transcribed_lookahead(gradients(steps), k, alpha)
    torch.testing.assert_close(params["w"], fast, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(state.slow["w"], slow, rtol=CLOSE, atol=CLOSE)


def test_limits_of_lookahead():
    grads, base = gradients(6), hft.adam(lr=0.1)
    assert largest_difference(run(hft.lookahead(base, 3, 1.0), grads)[0], run(base, grads)[0]) <= CLOSE
    assert largest_difference(run(hft.lookahead(base, 3, 0.0), grads)[0], start()) == 0
    without = [*gradients(2), {**gradients(3)[2], "b": None}]  # at the synchronisation
    params, state = run(hft.lookahead(base, 3, 0.5), without)
    assert torch.equal(params["b"], run(base, without)[0]["b"])
    assert torch.equal(state.slow["b"], start()["b"])
    assert torch.equal(state.slow["w"], params["w"])
