"""Cotangents in 16 bits go through a graph scaled, so that small ones do not vanish and large ones do not overflow."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.core.vjp import pull


@pytest.mark.parametrize("size", [1e-7, 1.0, 2e4])
def test_cotangents_of_float16_are_scaled_on_their_way(size: float):
    """By a power of two that may be none of float16 itself: 2^27 for cotangents of 1e-7."""
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    seen = []
    small = x * 1e-3
    small.register_hook(lambda g: seen.append(g.clone()))
    v = torch.tensor([1.0, -0.5, 0.25, 0.125]) * size
    (got,) = pull([small], [v], [x])
    assert 8 <= seen[0].abs().max().item() < 16
    torch.testing.assert_close(got, 1e-3 * v, rtol=2**-9, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt")], ids=repr)
def test_a_small_outer_loss_over_float16_params_has_a_derivative(strategy, create_graph):
    def slope(size: float, dtype: torch.dtype = torch.float16):
        lr, w = torch.tensor(0.1, requires_grad=True), torch.linspace(0.5, 1.0, 4, dtype=dtype)
        end = hft.train(hft.sgd(lr=lr), lambda p, x: (p * x).square().sum(), w, [0.5, 1.0, 0.5], strategy=strategy)
        value = size * end.params.float().square().sum()
        return torch.autograd.grad(value, lr, create_graph=create_graph)[0] / size

    want = slope(1.0)
    torch.testing.assert_close(want, slope(1.0, torch.float32), rtol=3 * 8 * 2**-11, atol=0)  # three steps, rounded
    for size in (2.0**-13, 2.0**13):  # by powers of two nothing is rounded, down to normal numbers of float16
        assert slope(size) == want
