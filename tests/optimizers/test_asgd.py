"""The average of ASGD, and its learning rate."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import batches, central_differences, loss, start, train

F64 = torch.float64


def f64(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


@pytest.mark.parametrize("t0", [0.3, 1.5, 2.6, 9.0])
def test_the_average_of_asgd_is_differentiable_in_everything(t0: float):
    opt = hft.asgd(lr=0.1, lambd=0.3, alpha=0.6, t0=t0)

    def outer(hparams):
        _, state = train(opt, hparams, start(), batches(5))
        return loss(state.ax, batches(1)[0] + 0.3)

    got, want = torch.func.grad(outer)(opt.hparams), central_differences(outer, opt.hparams)
    torch.testing.assert_close(torch.stack(tree.leaves(got)), torch.stack(want), rtol=1e-6, atol=1e-8)
    assert (got["t0"] != 0) == (t0 < 3)  # 4 updates are done before the last: the average begins where n - t0 > 1


def test_a_learning_rate_of_asgd_acts_in_the_update_that_gets_it():
    w, g = {"w": torch.ones(3, dtype=F64)}, {"w": torch.full((3,), 2.0, dtype=F64)}
    opt = hft.asgd(lr=0.1, lambd=0.0)
    params, state = opt.update(g, opt.init(w), w)
    slope = torch.func.grad(lambda lr: opt.update(g, state, params, {**opt.hparams, "lr": lr})[0]["w"].sum())
    assert slope(f64(0.5)) == -6.0
    moved, _ = opt.update(g, state, params, {**opt.hparams, "lr": f64(0.5)})
    torch.testing.assert_close(params["w"] - moved["w"], torch.ones(3, dtype=F64), rtol=1e-15, atol=1e-15)
