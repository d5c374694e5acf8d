"""GradScaler: the fused executions unscale and skip by themselves, the others are unscaled and skipped by it."""

from __future__ import annotations

import torch

import hyperopt_ftp as hft


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
