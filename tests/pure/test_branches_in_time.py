"""Rules that change with the number of updates: right on both sides, and no NaN from the side that is not taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import batches, central_differences, loss, start, train


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("b2", [0.0, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("steps", [1, 5, 7])
def test_radam_has_finite_derivatives_before_and_after_it_is_rectified(b2: float, steps: int):
    opt = hft.radam(lr=0.1, betas=(0.9, b2))
    slopes = torch.func.grad(lambda h: loss(train(opt, h, start(), batches(steps))[0], batches(1)[0]))(opt.hparams)
    assert all(x.isfinite() for x in tree.leaves(slopes))
    assert (slopes["betas"][1] != 0) == (b2 > 0.9 and steps == 7)  # rho in update 7: 4.4 at 0.7, 6.6 at 0.95


def test_radam_does_not_look_at_the_second_moment_before_it_is_rectified():
    """Not even where it is 0, and so is eps."""
    opt, w = hft.radam(lr=0.1, eps=0.0), {"w": torch.ones(2, dtype=torch.float64)}

    def outer(hparams):
        params, state = w, opt.init(w)
        for _ in range(5):
            params, state = opt.update({"w": 0 * params["w"]}, state, params, hparams)
        return params["w"].sum()

    assert all(x.isfinite() for x in tree.leaves(torch.func.grad(outer)(opt.hparams)))


def test_radam_with_and_without_rectification_in_one_vmap():
    opt, b2s = hft.radam(lr=0.1, eps=1e-2), torch.tensor([0.5, 0.95, 0.999], dtype=torch.float64)
    params, data = start(), batches(7)

    def final(b2):
        return train(opt, {**opt.hparams, "betas": (number(0.9), b2)}, params, data)[0]

    together = torch.func.vmap(final)(b2s)
    for i, b2 in enumerate(b2s):
        alone = final(b2)
        torch.testing.assert_close({k: v[i] for k, v in together.items()}, alone, rtol=1e-13, atol=1e-13)


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
    w, g = {"w": torch.ones(3, dtype=torch.float64)}, {"w": torch.full((3,), 2.0, dtype=torch.float64)}
    opt = hft.asgd(lr=0.1, lambd=0.0)
    params, state = opt.update(g, opt.init(w), w)
    slope = torch.func.grad(lambda lr: opt.update(g, state, params, {**opt.hparams, "lr": lr})[0]["w"].sum())
    assert slope(number(0.5)) == -6.0
    moved, _ = opt.update(g, state, params, {**opt.hparams, "lr": number(0.5)})
    torch.testing.assert_close(params["w"] - moved["w"], torch.ones(3, dtype=torch.float64), rtol=1e-15, atol=1e-15)


def test_rprop_reads_its_learning_rate_at_first_only_and_its_bounds_always():
    opt, w = hft.rprop(lr=0.1, step_sizes=(1e-6, 0.13)), number(0.0)

    def final(hparams, grads):
        params, state = w, opt.init(w, hparams)
        for g in grads:
            params, state = opt.update(number(g), state, params, hparams)
        return params

    # Step sizes: 0.1, 0.12, 0.06 without a step, 0.06; then the same from the bound.
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, -1.0, -1.0])
    assert slopes["lr"].item() == pytest.approx(-1 - 1.2 + 1.2 * 0.5, abs=1e-15)
    assert [x.item() for x in slopes["etas"]] == pytest.approx([0.1 * 1.2, -0.1 + 0.1 * 0.5], abs=1e-15)
    assert [x.item() for x in slopes["step_sizes"]] == [0, 0]
    slopes = torch.func.grad(final)(opt.hparams, [1.0, 1.0, 1.0])  # 0.1, 0.12, 0.13
    assert [slopes["lr"].item(), slopes["step_sizes"][1].item()] == pytest.approx([-2.2, -1], abs=1e-15)
