"""RMSprop with Nesterov's momentum."""

from __future__ import annotations

import pytest
import torch
import torchopt

import hyperopt_ftp as hft

from ..support.problems import batches, loss, start


@pytest.mark.parametrize("nesterov", [False, True])
def test_rmsprop_with_nesterov_is_that_of_torchopt(nesterov: bool):
    """torch has none."""
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-4, "momentum": 0.9, "centered": True, "weight_decay": 1e-2}
    ours, theirs = (make(**options, nesterov=nesterov) for make in (hft.rmsprop, torchopt.rmsprop))
    w = p = start()
    state, other = ours.init(w), theirs.init(p)
    for x in batches(4):
        w, state = ours.update(torch.func.grad(loss)(w, x), state, w)
        updates, other = theirs.update(torch.func.grad(loss)(p, x), other, params=p, inplace=False)
        p = torchopt.apply_updates(p, updates, inplace=False)
    torch.testing.assert_close(w, p, rtol=0, atol=1e-13)
