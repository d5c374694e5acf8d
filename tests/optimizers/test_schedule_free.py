"""The average of schedule-free optimizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import batches, loss, start

F64 = torch.float64


FREE = [hft.schedule_free_sgd(lr=0.3, momentum=0.7), hft.schedule_free_adamw(lr=0.1, betas=(0.7, 0.9))]


@pytest.mark.parametrize("opt", FREE, ids=["sgd", "adamw"])
def test_the_average_is_in_the_state_and_the_params_lie_between(opt: hft.Optimizer):
    params = start()
    state = opt.init(params)
    assert tree.structure(state.average) == tree.structure(params)
    seen = []
    for x in batches(4):
        params, state = opt.update(torch.func.grad(loss)(params, x), state, params)
        seen.append(state.z)
    for name, y in params.items():
        mean = torch.stack([z[name] for z in seen]).mean(0)  # no warm-up: equal weights
        torch.testing.assert_close(state.average[name], mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(y, 0.3 * state.z[name] + 0.7 * mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("make", [hft.schedule_free_sgd, hft.schedule_free_adamw])
def test_a_learning_rate_of_0_has_no_average_yet(make: Callable[..., hft.Optimizer]):
    opt = make(lr=0.0)

    def run(hparams):
        w = torch.ones(2, dtype=F64)
        state = opt.init(w)
        for _ in range(2):
            w, state = opt.update(torch.ones(2, dtype=F64), state, w, hparams)
        return w.sum()

    assert run(opt.hparams) == 2
    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(run)(opt.hparams)))
