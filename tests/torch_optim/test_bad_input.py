"""Odd input that is taken as it is meant. What is refused: test_bad_input_table.py."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.kernels import ops

from ..support.executions import FLAGS, every_execution


def test_buffers_in_the_state_dict_of_a_module_are_no_mistake():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    for make in (hft.FTPAdamW, hft.FTPSGD, lambda params, **own: hft.FTP(torch.optim.SGD(params), **own)):
        make(net.named_parameters(), anchor=net.state_dict())


@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_what_fused_refuses_runs_without_it(make, monkeypatch):
    crossed = torch.nn.Parameter(torch.ones(3, 4).t())
    assert make([crossed]).execution == "foreach"
    monkeypatch.setattr(ops, "INSTALLED", frozenset())
    assert make([torch.nn.Parameter(torch.ones(2))]).execution == "foreach"


@every_execution
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
@pytest.mark.parametrize("kind", ["dtype", "layout", "expanded", "zero-size", "weight", "sliced weight"])
def test_odd_gradients_and_weights_give_the_reference_result(kind, make, execution):
    """Gradients of another dtype or layout, or expanded; no elements; weights that are not contiguous."""
    results = []
    for flags in ({"foreach": False}, FLAGS[execution]):
        torch.manual_seed(0)
        shape = (0, 4) if kind == "zero-size" else (4, 6)
        w = torch.randn(shape, dtype=torch.float32)
        if kind == "weight":
            w = torch.randn(6, 4).t()
            flags = {"foreach": True} if flags.get("fused") else flags  # fused=True refuses it
        if kind == "sliced weight":
            w = torch.randn(4, 9)[:, :6]
            flags = {"foreach": True} if flags.get("fused") else flags
        p = torch.nn.Parameter(w)
        if kind == "dtype":
            p.grad_dtype = torch.float64
        opt = make([p], lr=0.05, radius_lr=0.05, **flags)
        for _ in range(4):
            g = torch.randn(shape) + 0.3
            if kind == "dtype":
                g = g.double()
            if kind == "layout":
                g = g.t().contiguous().t()
            if kind == "expanded":
                g = g[:, :1].expand(4, 6)
            p.grad = g
            opt.step()
        results.append((p.detach(), opt.radii()))
    torch.testing.assert_close(*(r[0] for r in results), rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


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
