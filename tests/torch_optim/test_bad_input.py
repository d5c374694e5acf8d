"""Odd input that is taken as it is meant. What is refused: test_bad_input_table.py."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution


def test_buffers_in_the_state_dict_of_a_module_are_no_mistake():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    for make in (hft.FTPAdamW, hft.FTPSGD, lambda params, **own: hft.FTP(torch.optim.SGD(params), **own)):
        make(net.named_parameters(), anchor=net.state_dict())


@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_what_fused_refuses_runs_without_it(make):
    crossed = torch.nn.Parameter(torch.ones(3, 4).t())
    assert make([crossed]).execution == "foreach"


@every_execution
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_layer_and_no_other(value, execution):
    """Which is said once, after a number of steps that is a power of two: to look waits for the device."""
    p, q = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    opt = hft.FTPAdamW([("q", q), ("p", p)], lr=0.1, **FLAGS[execution])
    opt.register_step_post_hook(lambda *_: None)  # a later hook, which runs after that which warns
    for t in range(9):
        p.grad, q.grad = torch.ones(3, 4), torch.ones(3, 4)
        if t == 2:
            p.grad[1, 2] = value
        told = pytest.warns(UserWarning, match="^after step 4 the radius of 'p' is nan") if t == 3 else nullcontext()
        with told:
            opt.step()
        # It is in h, so in the radius, so in every row.
        assert p.isnan().all() == (t > 1)
        assert math.isnan(opt.radii()["p"]) == (t > 1)
    assert not q.isnan().any()
