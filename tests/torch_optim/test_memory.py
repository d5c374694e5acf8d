"""What the state holds and how small it can be made; master copies of 16-bit weights; weights changed from outside."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution


@every_execution
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(
    ("make", "moments"),
    [(hft.FTPAdamW, {"exp_avg", "exp_avg_sq"}), (partial(hft.FTPSGD, momentum=0.9), {"momentum_buffer"})],
)
def test_no_more_than_the_moments_c_and_the_anchor_are_of_full_size(make, moments, execution, lean):
    p = torch.nn.Parameter(torch.randn(40, 50))
    opt = make([p], lr=0.1, lean=lean, **FLAGS[execution])
    for _ in range(4):
        p.grad = torch.randn_like(p)
        opt.step()
    full = {key: value.dtype for key, value in opt.state[p].items() if value.numel() == p.numel()}
    kept = torch.bfloat16 if lean else torch.float32
    assert full == dict.fromkeys({"anchor", *moments}, torch.float32) | {"deviation": kept}


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
    """c rounds to bfloat16 (relative 2^-9, at most 2^-8 with ties and subnormals), and h alone reads it.

    Both start each step from the exact one's state, so one step's difference is seen.
    """
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 60).reshape(6, 10)) for _ in range(2))
    options = {"lr": 0.02, "radius_lr": 0.05, "gradient": gradient}
    exact = hft.FTPAdamW([p], foreach=False, **options)
    lean = hft.FTPAdamW([q], lean=True, **FLAGS[execution], **options)
    torch.manual_seed(0)
    bound = 0.0
    for step in range(6):
        g = torch.randn(6, 10) + 0.5
        p.grad, q.grad, state = g.clone(), g.clone(), exact.state[p]
        if step:
            for key, value in state.items():
                lean.state[q][key].copy_(value)
            q.data.copy_(p.detach())
            inside = (state["radius"] <= state["row_norm"]).float() if gradient == "exact" else 1.0
            rows = (g * state["deviation"]).abs().sum(1) / state["row_norm"] * inside
            bound = 2**-8 * rows.sum() * (1 - 0.9) + 1e-6
        exact.step()
        lean.step()
        assert lean.state[q]["deviation"].dtype == torch.bfloat16
        assert (state["radius_exp_avg"] - lean.state[q]["radius_exp_avg"]).abs() <= bound
        torch.testing.assert_close(lean.state[q]["row_norm"], state["row_norm"], rtol=1e-5, atol=1e-7)
    assert lean.execution == execution


@every_execution
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_updates_smaller_than_an_ulp_are_not_lost(execution, dtype):
    """At 1.0 the last bit of bfloat16 is 2^-8, of float16 2^-10. Steps of 4e-5 alone would never move the weights."""
    p = torch.nn.Parameter(torch.ones(3, 4, dtype=dtype))
    opt = hft.FTPSGD([p], lr=4e-5, radius_lr=10.0, **FLAGS[execution])
    for step in range(1, 251):
        p.grad = -torch.ones_like(p)
        opt.step()
        if step == 8:
            assert torch.equal(p, torch.ones_like(p))
    # 248 steps of 4e-5 (the first ones wait for the radius), rounded once.
    expected = torch.full_like(p, 1 + 248 * 4e-5)
    assert (p - expected).abs().max() <= torch.finfo(dtype).eps
