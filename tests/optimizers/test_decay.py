"""Decoupled weight decay around an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support.problems import largest_difference, start
from ..support.updates import CLOSE, F64, gradients, run


def test_decayed_adam_is_adamw():
    grads, rates = gradients(5), {"w": torch.tensor(0.1, dtype=F64), "b": torch.tensor(0.02, dtype=F64)}
    grads[2] = {**grads[2], "b": None}  # which moves nothing
    for lr in (0.1, rates):
        want = run(hft.adamw(lr=lr, weight_decay=0.3), grads)
        got = run(hft.decayed(hft.adam(lr=lr, weight_decay=0.0), 0.3), grads)
        assert largest_difference(got, want) <= CLOSE
    narrow = {name: w.bfloat16() for name, w in start().items()}
    got = run(hft.decayed(hft.adam(lr=0.1), 0.3), grads, narrow)
    assert largest_difference(got, run(hft.adamw(lr=0.1, weight_decay=0.3), grads, narrow)) == 0
    opt = hft.decayed(hft.adam(weight_decay=0.1), {"w": 0.2, "b": 0.0})
    assert opt.hparams["weight_decay"] == 0.1
    assert opt.hparams["weight_decay_2"]["w"] == 0.2


@pytest.mark.parametrize("exclude", ["b", ["b"], "?", ("w", "b"), lambda path: path == "b"])
def test_what_is_excluded_does_not_decay(exclude: Any):
    grads = [{**gradients(1)[0], "b": 0 * start()["b"]}]
    params, _ = run(hft.decayed(hft.sgd(lr=0.1), 0.5, exclude=exclude), grads)
    assert torch.equal(params["b"], start()["b"])
    both = exclude in ("?", ("w", "b"))
    decay = 0.0 if both else 0.5
    torch.testing.assert_close(params["w"], (1 - 0.1 * decay) * start()["w"] - 0.1 * grads[0]["w"])
