"""What the state holds and how small it can be made; master copies of 16-bit weights; weights changed from outside."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution


def train(p, opt, steps=4, seed=1, trend=0.5):
    torch.manual_seed(seed)
    for _ in range(steps):
        p.grad = torch.randn_like(p) + trend
        opt.step()


@every_execution
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_no_more_than_m_v_c_and_the_anchor_are_of_full_size(make, execution):
    p = torch.nn.Parameter(torch.randn(40, 50))
    opt = make([p], lr=0.1, **FLAGS[execution]) if make is hft.FTPAdamW else make([p], 0.1, 0.9, **FLAGS[execution])
    train(p, opt)
    full = {key for key, value in opt.state[p].items() if value.numel() == p.numel()}
    assert full == {"anchor", "deviation"} | (
        {"exp_avg", "exp_avg_sq"} if make is hft.FTPAdamW else {"momentum_buffer"}
    )


@every_execution
def test_an_anchor_in_a_file_is_mapped_and_takes_no_state(execution, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    path = tmp_path / "anchor.safetensors"
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)
    results = []
    for anchor in (None, path):
        net = copy.deepcopy(model)
        opt = hft.FTPAdamW(net.named_parameters(), lr=0.1, anchor=anchor, **FLAGS[execution])
        torch.manual_seed(0)
        for k in range(4):
            if k == 2:  # pickled in between
                file = io.BytesIO()
                torch.save((net, opt), file)
                file.seek(0)
                net, opt = torch.load(file, weights_only=False)
            for p in net.parameters():
                p.grad = torch.randn_like(p) + 0.5
            opt.step()
        results.append([p.detach() for p in net.parameters()])
        kept = {n for n, p in net.named_parameters() if "anchor" in opt.state[p]}
        # Also of the convolution, which does not lie as in the file.
        assert kept == ({"0.weight", "0.bias", "1.weight", "1.bias"} if anchor is None else set())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_execution
@pytest.mark.parametrize("gradient", ["paper", "exact"])
def test_lean_differs_from_the_exact_rule_by_its_bound(execution, gradient):
    """c rounds to bfloat16 (relative 2^-9, at most 2^-8 with ties and subnormals), and h alone reads it."""
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 60).reshape(6, 10)) for _ in range(2))
    exact = hft.FTPAdamW([p], lr=0.02, radius_lr=0.05, gradient=gradient, foreach=False)
    lean = hft.FTPAdamW([q], lr=0.02, radius_lr=0.05, gradient=gradient, lean=True, **FLAGS[execution])
    torch.manual_seed(0)
    for step in range(6):
        g = torch.randn(6, 10) + 0.5
        p.grad, q.grad = g.clone(), g.clone()
        state = exact.state[p]
        if step:
            # Both start each step from the exact one's state, so one step's deviation is seen.
            for key, value in state.items():
                lean.state[q][key].copy_(value)
            q.data.copy_(p.detach())
            c, n = state["deviation"].clone(), state["row_norm"].clone()
            inside = torch.ones_like(n) if gradient == "paper" else (state["radius"] <= n).float()
            bound = 2**-8 * ((g.abs() * c.abs()).sum(1) / n * inside).sum() * (1 - 0.9) + 1e-6
        exact.step()
        lean.step()
        assert lean.state[q]["deviation"].dtype == torch.bfloat16
        if step:
            off = (state["radius_exp_avg"] - lean.state[q]["radius_exp_avg"]).abs()
            assert off <= bound
            torch.testing.assert_close(lean.state[q]["row_norm"], state["row_norm"], rtol=1e-5, atol=1e-7)
    assert lean.execution == execution
    # A whole run stays near: the radius's step is at most radius_lr whatever h is.
    assert (p - q).abs().max() < 0.05


def test_lean_takes_three_and_a_half_buffers():
    p = torch.nn.Parameter(torch.randn(100, 100))
    sizes = []
    for lean in (False, True):
        opt = hft.FTPAdamW([p], lean=lean)
        train(p, opt, 2)
        sizes.append(sum(t.numel() * t.element_size() for t in opt.state[p].values()) / (4 * p.numel()))
    assert sizes[0] == pytest.approx(4, abs=0.02)
    assert sizes[1] == pytest.approx(3.5, abs=0.02)


@every_execution
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_updates_smaller_than_an_ulp_are_not_lost(execution, dtype):
    """At 1.0 the last bit of bfloat16 is 2^-8, of float16 2^-10. Steps of 1e-5 alone would never move the weights."""
    p = torch.nn.Parameter(torch.ones(3, 4, dtype=dtype))
    opt = hft.FTPSGD([p], lr=1e-5, radius_lr=10.0, **FLAGS[execution])
    for step in range(1, 1001):
        p.grad = -torch.ones_like(p)
        opt.step()
        if step == 20:
            assert torch.equal(p, torch.ones_like(p))
    # 998 steps of 1e-5 (the first ones wait for the radius), rounded once.
    expected = torch.full_like(p, 1 + 998e-5)
    assert (p - expected).abs().max() <= torch.finfo(dtype).eps
