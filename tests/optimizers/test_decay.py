"""Decoupled weight decay around an optimizer."""

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

decays = strategies.between(0.0, 0.5)
narrow = strategies.params((torch.float64, torch.bfloat16))


@given(run=strategies.runs(narrow), lr=strategies.between(0.01, 0.2), decay=decays)
def test_decayed_adam_is_adamw(run: strategies.Run, lr: float, decay: float):
    """Where a gradient is missing, nothing moves; and the arithmetic of 16-bit weights is rounded once."""
    want = run.by(hft.adamw(lr=lr, weight_decay=decay))[0]
    got = run.by(hft.decayed(hft.adam(lr=lr, weight_decay=0.0), decay))[0]
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        assert largest_difference(a, b) <= (0 if a.dtype is torch.bfloat16 else CLOSE)


@given(
    run=strategies.runs(none=False),
    base=strategies.rules([hft.sgd, hft.adam, hft.rmsprop]),
    decay=decays,
    data=st.data(),
)
def test_what_is_excluded_does_not_decay(run: strategies.Run, base: hft.Optimizer, decay: float, data: Any):
    paths = [path for path, _ in tree.named(run.params)]
    out = data.draw(st.sets(st.sampled_from(paths)))
    exclude = data.draw(st.sampled_from([tuple(out), out.__contains__]))
    if out != set(paths) and (out or callable(exclude)) and "" not in paths:
        got = run.by(hft.decayed(base, decay, exclude=exclude))[0]
        whole, none = (run.by(hft.decayed(base, x))[0] for x in (decay, 0.0))
        for path, w in tree.named(got):
            assert torch.equal(w, tree.by_path(none if path in out else whole)[path])


def test_patterns_are_excluded_and_names_do_not_shadow():
    grads = [{**gradients(1)[0], "b": 0 * start()["b"]}]
    for exclude in ("b", "[ab]"):
        params, _ = run(hft.decayed(hft.sgd(lr=0.1), 0.5, exclude=exclude), grads)
        assert torch.equal(params["b"], start()["b"])
    opt = hft.decayed(hft.adam(weight_decay=0.1), {"w": 0.2, "b": 0.0})
    assert (opt.hparams["weight_decay"], opt.hparams["weight_decay_2"]["w"]) == (0.1, 0.2)
