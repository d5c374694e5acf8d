"""ZeroOrder looks beyond the values that an hparam may have, and takes any outer value, also without vmap."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ...support.hypergradients import drawn


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


def test_it_counts_errors_where_vmap_cannot_be_used():
    w = torch.full((3,), 0.3, dtype=torch.float64)
    data = [torch.arange(1.0, 4.0, dtype=torch.float64) * (i + 1) / 3 for i in range(4)]
    opt = hft.from_torchopt(__import__("torchopt").sgd, lr=0.1, momentum=0.5)
    strategy = hft.ZeroOrder(8, 0.3, generator=torch.Generator().manual_seed(0))

    def trained(momentum):
        hparams = {"momentum": torch.as_tensor(momentum)}
        return hft.train(opt, lambda p, x: ((p - x) ** 2).sum(), w, data, hparams=hparams).params.detach()

    end = trained(0.5)

    def errors(params):
        return (params > end).sum()

    with pytest.warns(UserWarning, match="one after the other"):
        value, grads, _ = hft.hypergradient(
            opt, lambda p, x: ((p - x) ** 2).sum(), errors, w, data, "momentum", strategy=strategy
        )
    assert not value.is_floating_point()
    assert value == 0
    rows = drawn(8, generator=torch.Generator().manual_seed(0))
    moved = [e * (errors(trained(0.5 + 0.3 * e)) - errors(trained(0.5 - 0.3 * e))) for e in rows]
    torch.testing.assert_close(grads["momentum"], (sum(moved) / (8 * 0.6)).to(grads["momentum"]))
