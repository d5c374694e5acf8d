"""ZeroOrder looks beyond the values that an hparam may have, where an optimizer has to stay finite."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_is_finite_around_all_of_its_hparams(amsgrad: bool):
    """Of b2 = 0.999 half of the samples are beyond 1, where a bias and a second moment are negative."""
    opt = hft.adam(lr=0.1, amsgrad=amsgrad)
    h = tree.map_tree(lambda x: x.clone().requires_grad_(), opt.hparams)
    strategy = hft.ZeroOrder(samples=32, sigma=0.01)
    run = hft.train(opt, lambda p, x: ((p - x) ** 2).sum(), torch.ones(3), [0.0] * 5, hparams=h, strategy=strategy)
    slopes = torch.autograd.grad(run.params.sum(), tree.leaves(h))
    assert all(x.isfinite() for x in slopes)
    assert any(slopes)


@pytest.mark.parametrize("antithetic", [False, True])
def test_params_of_16_bits_are_so_at_all_points(antithetic: bool):
    """The loss multiplies them by a batch of their dtype. An estimate's error is about sqrt(8 / samples)."""
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(4, 2, generator=g).bfloat16(), torch.randn(8, 4, generator=g).bfloat16()
    exact, found = (
        hft.hypergradient(
            hft.sgd(lr=0.1), lambda p, b: (b @ p).float().square().mean(), lambda p: (x @ p).float().square().mean(),
            w, [x] * 3, "params", strategy=strategy,
        )[1]["params"].float()
        for strategy in (hft.Unroll(), hft.ZeroOrder(800, 0.1, antithetic, generator=g))
    )  # fmt: skip
    assert (found - exact).norm() < 0.3 * exact.norm()
