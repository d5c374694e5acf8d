"""GradScaler: the fused executions unscale and skip by themselves, the others are unscaled and skipped by it."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution

SCALE = 1024.0


def build(make, execution):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    opt = make(model.named_parameters(), lr=0.05, radius_lr=0.05, exclude="2.*", **FLAGS[execution])
    return model, opt


def run(model, opt, scaler, overflows=()):
    torch.manual_seed(1)
    for t in range(6):
        x = torch.randn(8, 4)
        opt.zero_grad()
        loss = (model(x) ** 2).mean()
        scaler.scale(loss).backward() if scaler else loss.backward()
        if t in overflows:
            model[0].weight.grad[0, 0] = float("inf")
        if scaler:
            scaler.step(opt)
            scaler.update()
        elif t not in overflows:
            opt.step()


@every_execution
@pytest.mark.parametrize("make", [hft.FTPAdamW, hft.FTPSGD])
def test_a_scaled_run_with_overflows_is_the_run_without_those_steps(make, execution):
    """A power of two scales without rounding: only the order of a multiplication differs."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    model, opt = build(make, execution)
    assert opt._step_supports_amp_scaling == (execution == "fused_cpu")
    run(model, opt, scaler, overflows=(0, 3))
    plain, reference = build(make, execution)
    run(plain, reference, None, overflows=(0, 3))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        assert opt.state[p]["step"] == 4
    assert opt.radii() == pytest.approx(reference.radii(), rel=1e-5)
    assert opt.execution == execution


def test_a_step_that_nobody_asked_to_be_fused_is_unscaled_by_the_scaler():
    """Lightning's bf16-mixed does not clip for an optimizer that unscales by itself, as torch's do if fused=True."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    assert hft.FTPAdamW([p]).execution == "fused_cpu"
    assert not hft.FTPAdamW([p])._step_supports_amp_scaling
    assert hft.FTPAdamW([p], fused=True)._step_supports_amp_scaling


def test_a_skipped_first_step_makes_no_state():
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = hft.FTPAdamW([p], fused=True)
    p.grad = torch.full_like(p, float("inf"))
    opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    opt.step()
    assert not opt.state
    assert torch.equal(p, torch.ones_like(p))


def test_the_wrapper_leaves_scaling_to_the_scaler():
    """A base that would unscale by itself runs after the radii have read the gradients."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = hft.FTP(torch.optim.AdamW([p], fused=True))
    assert not getattr(opt, "_step_supports_amp_scaling", False)
