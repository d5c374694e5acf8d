"""Averages of weights equal torch's, and are found inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies

from ..support.cases import ANCHOR
from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, gradients, run

# A schedule-free rule keeps an average of its own.
rules = strategies.rules().filter(lambda opt: not opt.weights_in_state)


@given(run=strategies.runs(none=False), rule=rules, decay=st.none() | strategies.between(0.0, 1.0))
def test_averages_equal_torchs(run: strategies.Run, rule: hft.Optimizer, decay: float | None):
    model, opt = torch.nn.ParameterList([w.clone() for w in tree.leaves(run.params)]), hft.averaged(rule, decay)
    if decay is None:
        peer = AveragedModel(model)
    else:
        peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        peer.update_parameters(model)  # the first one copies
    params, state = run.params, opt.init(run.params)
    assert largest_difference(hft.averages(params, state), params) == 0
    for g in run.grads:
        params, state = opt.update(g, state, params)
        with torch.no_grad():
            for p, w in zip(model, tree.leaves(params), strict=True):
                p.copy_(w)
        peer.update_parameters(model)
        assert largest_difference(tree.leaves(hft.averages(params, state)), [*peer.module]) <= CLOSE
    assert largest_difference(params, run.by(rule)[0]) == 0  # the training is the base's


@given(run=strategies.runs(none=False), rule=rules, decay=st.none() | strategies.between(0.0, 1.0))
def test_an_average_lies_between_what_it_is_of(run: strategies.Run, rule: hft.Optimizer, decay: float | None):
    opt = hft.averaged(rule, decay)
    params, state, seen = run.params, opt.init(run.params), [run.params]
    for g in run.grads:
        params, state = opt.update(g, state, params)
        seen.append(params)
    for x, *path in zip(*map(tree.leaves, (hft.averages(params, state), *seen)), strict=True):
        low, high = (f(torch.stack(path), 0) for f in (torch.amin, torch.amax))
        assert (low - CLOSE <= x).all()
        assert (x <= high + CLOSE).all()


def averaged() -> hft.Optimizer:
    return hft.averaged(hft.sgd(lr=0.1), 0.5)


READ = {
    "bare": lambda: averaged(),
    "ftp": lambda: hft.ftp(averaged(), ANCHOR),
    "lookahead": lambda: hft.lookahead(averaged(), every=9),
    "hyper": lambda: hft.hyper(averaged(), by=hft.averaged(hft.sgd(lr=1e-3)), over="lr"),
    "partition": lambda: hft.partition({"w": averaged(), "b": averaged()}, lambda path: path),
    "partition in one": lambda: hft.partition(
        {"all": hft.projected(hft.partition({"w": averaged(), "b": averaged()}, lambda path: path), ANCHOR)}, "all"
    ),
}


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_averages_are_found_inside(make: Callable[[], hft.Optimizer]):
    params, state = run(make(), gradients(3))
    got = hft.averages(params, state)
    assert got.keys() == params.keys()

    def find(state: Any) -> dict[str, Any]:
        """By hand: the bare state at the end of the way."""
        if hasattr(state, "parts"):
            return {k: v for part in state.parts.values() for k, v in find(part).items()}
        return state.average if hasattr(state, "average") else find(state.base)

    assert largest_difference(got, find(state)) == 0
    assert largest_difference(got, params) > 1e-3


def test_averages_of_some_parts_and_of_other_dtypes():
    opt = hft.partition({"w": averaged(), "b": hft.sgd(lr=0.1)}, lambda path: path)
    params, state = run(opt, gradients(2))
    got = hft.averages(params, state)
    assert got["b"] is params["b"]
    assert largest_difference(got["w"], state.parts["w"].average["w"]) == 0
    narrow = {name: w.bfloat16() for name, w in start().items()}
    state = averaged().init(narrow)
    assert {x.dtype for x in tree.leaves(state.average)} == {torch.float32}
    assert {x.dtype for x in hft.averages(narrow, state).values()} == {torch.bfloat16}
