"""Averages of weights equal torch's, and are found inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import ANCHOR
from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, gradients, run


@pytest.mark.parametrize("decay", [0.9, 0.0, 1.0, None])
def test_averages_equal_torchs(decay: float | None):
    grads, opt = gradients(6), hft.averaged(hft.sgd(lr=0.1), decay)
    model = torch.nn.Module()
    for name, w in start().items():
        model.register_parameter(name, torch.nn.Parameter(w.clone()))
    if decay is None:
        peer = AveragedModel(model)
    else:
        peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        peer.update_parameters(model)  # the first one copies
    params, state = start(), opt.init(start())
    assert largest_difference(hft.averages(params, state), params) == 0
    for g in grads:
        params, state = opt.update(g, state, params)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(params[name])
        peer.update_parameters(model)
        want = {name.removeprefix("module."): p for name, p in peer.named_parameters()}
        assert largest_difference(hft.averages(params, state), want) <= CLOSE
    assert largest_difference(params, run(hft.sgd(lr=0.1), grads)[0]) == 0  # the training is the base's


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
