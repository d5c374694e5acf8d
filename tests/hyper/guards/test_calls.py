"""Gradient hooks in a loss: those that look are let through, those that change a gradient are refused."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ...support.hypergradients import F64

ONE = torch.ones(3, dtype=F64)


def slope(hook, strategy):
    def loss(p, x):
        h = p.tanh()
        h.register_hook(hook)
        return ((h - x) ** 2).sum()

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    run = hft.train(hft.sgd(), loss, ONE / 2, [ONE] * 3, hparams={"lr": lr}, strategy=strategy)
    return torch.autograd.grad(run.params.sum(), lr)[0].item()


@pytest.mark.parametrize("strategy", [hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1), hft.Forward()], ids=str)
def test_a_hook_that_changes_a_gradient_is_refused(strategy):
    """It would act on the derivative of the gradient, too."""
    for hook in (lambda g: g / 2, lambda g: g.detach() / 2):
        with pytest.raises(
            RuntimeError, match="a hook that changes a gradient .* in the optimizer instead: hft.clipped"
        ):
            slope(hook, strategy)
    seen = []
    looked = slope(lambda g: seen.append(g.norm()), strategy)
    assert seen
    assert looked == pytest.approx(slope(lambda g: g, strategy), rel=1e-14)
