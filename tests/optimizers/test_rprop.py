"""What Rprop reads, and when."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

F64 = torch.float64


def f64(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def test_rprop_reads_its_learning_rate_at_first_only_and_its_bounds_always():
    opt, w = hft.rprop(lr=0.1, step_sizes=(1e-6, 0.13)), f64(0.0)

    def final(hparams, grads):
        params, state = w, opt.init(w, hparams)
        for g in grads:
            params, state = opt.update(f64(g), state, params, hparams)
        return params

    # Step sizes: 0.1, 0.12, 0.06 without a step, 0.06; then the same from the bound.
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, -1.0, -1.0])
    assert slopes["lr"].item() == pytest.approx(-1 - 1.2 + 1.2 * 0.5, abs=1e-15)
    assert [x.item() for x in slopes["etas"]] == pytest.approx([0.1 * 1.2, -0.1 + 0.1 * 0.5], abs=1e-15)
    assert [x.item() for x in slopes["step_sizes"]] == [0, 0]
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, 1.0])  # 0.1, 0.12, 0.13
    assert [slopes["lr"].item(), slopes["step_sizes"][1].item()] == pytest.approx([-2.2, -1], abs=1e-15)
