"""MARS-SP: a fixed radius, by FTP's kernels, with an assertion on which execution ran."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution
from ..support.trajectories import parameters, play, problem, tensors


@every_execution
@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_mars_sp_equals_projected_in_each_execution(execution: str, norm: str):
    anchor, first, grads = problem()
    params = parameters(first)
    opt = hft.MARSSP(
        torch.optim.AdamW(params.items(), lr=0.05, **FLAGS[execution]), radius=0.3, norm=norm, anchor=tensors(anchor)
    )
    pure = hft.projected(hft.adamw(lr=0.05), tensors(anchor), norm=norm, radius=0.3)
    weights, state = tensors(first), pure.init(tensors(first))
    for t in play(params, opt, grads):
        weights, state = pure.update(tensors(grads[t]), state, weights)
        for name, p in params.items():
            torch.testing.assert_close(p.detach(), weights[name], rtol=0, atol=1e-12)
        assert opt.execution == execution
    assert max(opt.radii().values()) == 0.3


def test_mars_sp_at_the_ends_of_its_radius():
    _, first, grads = problem()
    held, free, fixed = parameters(first), parameters(first), parameters(first)
    opt = hft.MARSSP(torch.optim.SGD(held.values(), lr=0.1), radius=float("inf"))
    base, none = torch.optim.SGD(free.values(), lr=0.1), hft.MARSSP(torch.optim.SGD(fixed.values(), lr=0.1), radius=0.0)
    for _ in zip(play(held, opt, grads), play(free, base, grads), play(fixed, none, grads), strict=True):
        for name in held:
            torch.testing.assert_close(held[name], free[name], rtol=1e-14, atol=1e-14)
            assert torch.equal(fixed[name].detach(), torch.tensor(first[name]))


def test_a_radius_of_mars_sp_grows_back_after_small_steps():
    """The radius in effect is clipped at the largest row; that must not become the limit of the next step."""
    w = torch.nn.Parameter(torch.zeros(1, 2))
    opt = hft.MARSSP(torch.optim.SGD([w], lr=1.0), radius=1.0)
    for size, expected in ((0.1, 0.1), (0.5, 0.6), (5.0, 1.0)):
        w.grad = torch.tensor([[-size, 0.0]])
        opt.step()
        assert w[0, 0].item() == pytest.approx(expected, abs=1e-6)
