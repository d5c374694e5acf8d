"""RAdam with and without rectification."""

from __future__ import annotations

import torch

import hyperopt_ftp as hft

from ..support.problems import batches, loss, start, train

F64 = torch.float64


def test_radam_with_and_without_rectification_in_one_vmap():
    """rho in update 7: 4.4 at 0.7, 6.6 at 0.95."""
    opt, b2s = hft.radam(lr=0.1, eps=1e-2), torch.tensor([0.0, 0.7, 0.95, 0.999], dtype=F64)
    params, data = start(), batches(7)

    def final(b2):
        b1 = torch.tensor(0.9, dtype=F64)
        return loss(train(opt, {**opt.hparams, "betas": (b1, b2)}, params, data)[0], data[0])

    for f in (final, torch.func.grad(final)):
        alone = torch.stack([f(b2) for b2 in b2s])
        torch.testing.assert_close(torch.func.vmap(f)(b2s), alone, rtol=1e-12, atol=1e-13)
    assert (alone != 0).tolist() == [False, False, True, True]
