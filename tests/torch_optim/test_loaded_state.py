"""Checkpoints of other optimizers and dtypes; what they may not bring along; odd groups and gradients."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution


def train(opt, steps=4):
    torch.manual_seed(1)
    for _ in range(steps):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = (torch.randn(p.shape) + 0.5).to(p.dtype)
        opt.step()


TAKES_THE_WEIGHTS = "of an optimizer without an anchor, so FTPAdamW takes the weights as they are"


@every_execution
def test_a_momentum_buffer_of_torch_moves_the_next_step(execution):
    free, theirs = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    train(sgd, 2)
    free.data.copy_(theirs)
    opt = hft.FTPSGD([{"params": [free], "constrained": False}], lr=0.1, momentum=0.9, **FLAGS[execution])
    opt.load_state_dict(copy.deepcopy(sgd.state_dict()))
    for each in (sgd, opt):
        train(each, 1)
    torch.testing.assert_close(free, theirs)


@every_execution
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_checkpoint_of_torch_in_any_dtype_goes_on(execution, dtype):
    """torch keeps moments in the dtype of the weights, ours are float32 or float64. After 1000 steps of AdamW the
    radius begins like a new one: 0.744, then 1 radius_lr a step at most."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(3, 4).to(dtype))
    adamw = torch.optim.AdamW([p], lr=1e-2)
    train(adamw, 1)
    saved = copy.deepcopy(adamw.state_dict())
    saved["state"][0]["step"] = 1000  # as old checkpoints have it
    opt = hft.FTPAdamW([p], radius_lr=1e-3, **FLAGS[execution])
    with pytest.warns(UserWarning, match=TAKES_THE_WEIGHTS):
        opt.load_state_dict(saved)
    radii = [0.0]
    for _ in range(4):
        p.grad = -torch.ones_like(p)
        opt.step()
        radii.append(opt.radii()[0])
    real = torch.float64 if dtype == torch.float64 else torch.float32
    assert {t.dtype for k, t in opt.state[p].items() if k not in ("anchor", "step", "radius_step")} == {real}
    assert (opt.state[p]["step"], opt.state[p]["radius_step"]) == (1004, 4)
    assert p.isfinite().all()
    assert opt.execution == execution
    if dtype == torch.float64:
        assert radii[2] - radii[1] == pytest.approx(0.744e-3, rel=1e-2)
        assert max(b - a for a, b in itertools.pairwise(radii)) <= 1e-3


def test_a_one_by_one_convolution_whose_strides_differ_only_in_name():
    p = torch.nn.Parameter(torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last))
    opt = hft.FTPAdamW([p], fused=True)
    for _ in range(3):
        p.grad = torch.randn(4, 3, 1, 1).as_strided((4, 3, 1, 1), (3, 1, 1, 1))
        opt.step()
    assert opt.execution == "fused_cpu"


def test_a_checkpoint_cannot_bring_what_the_constructor_refuses():
    crossed = torch.nn.Parameter(torch.randn(5, 4).t())
    source = torch.optim.AdamW([torch.nn.Parameter(torch.randn(4, 5))], fused=True)
    opt = hft.FTPAdamW([crossed])
    opt.load_state_dict(source.state_dict())
    assert opt.param_groups[0]["fused"] is None  # of the machine, not of the run


@every_execution
def test_a_gradient_with_a_lazy_minus_sign(execution):
    sides = [torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    flags = FLAGS[execution], {"foreach": False}
    opts = [hft.FTPSGD([w], lr=0.1, **own) for w, own in zip(sides, flags, strict=True)]
    ((torch.complex(torch.tensor(0.0), sides[0]).conj()) * 1j).real.sum().backward()
    assert sides[0].grad.is_neg()
    sides[1].grad = sides[0].grad.resolve_neg().clone()
    for opt in opts:
        opt.step()
    assert opts[0].state[sides[0]]["deviation"] == opts[1].state[sides[1]]["deviation"] != 0


@every_execution
def test_an_empty_group_and_tensors_for_numbers(execution):
    p = torch.nn.Parameter(torch.randn(3))
    opt = hft.FTPAdamW([{"params": [p]}, {"params": []}], betas=(torch.tensor(0.9), torch.tensor(0.99)))
    opt.param_groups[0].update(FLAGS[execution])
    train(opt, 1)
    assert opt.execution == execution
    hft.FTPAdamW([{"params": [p]}, {"params": []}], **FLAGS[execution])


def test_a_loaded_anchor_goes_to_the_device_that_was_chosen():
    """The meta device stands for another one: what was saved lies on the CPU."""
    w = torch.nn.Parameter(torch.ones(2, 3))
    saved, opt = (hft.FTPAdamW([w], lr=0.1, anchor_device="cpu", foreach=False) for _ in range(2))
    w.grad = torch.ones_like(w)
    saved.step()
    opt._mover.hold.anchors.device = torch.device("meta")
    opt.load_state_dict(saved.state_dict())
    assert {name: x.device.type for name, x in opt.state[w].items() if name in ("anchor", "deviation")} == {
        "anchor": "meta",
        "deviation": "cpu",
    }
