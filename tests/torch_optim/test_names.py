from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.torch_optim.names import unwrapped


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.blocks.0._checkpoint_wrapped_module.fc.weight", "blocks.0.fc.weight"),
        ("_fsdp_wrapped_module.a._fsdp_wrapped_module.b", "a.b"),
        ("encoder.module.weight", "encoder.module.weight"),
        ("module", "module"),
    ],
)
def test_plain(wrapped, bare):
    assert unwrapped(wrapped) == bare


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("pattern", ["head.*", "{prefix}head.*"])
def test_patterns_and_anchors_see_through_wrappers(prefix, pattern):
    body, head = (torch.nn.Parameter(torch.zeros(1, 2)) for _ in range(2))
    named = [(f"{prefix}body.weight", body), (f"{prefix}head.weight", head)]
    anchor = {"body.weight": torch.ones(1, 2)}
    opt = hft.FTPSGD(named, lr=0.1, exclude=pattern.format(prefix=prefix), anchor=anchor)
    for p in (body, head):
        p.grad = torch.zeros_like(p)
    opt.step()
    assert list(opt.radii()) == [f"{prefix}body.weight"]
    assert torch.equal(opt.state[body]["anchor"], torch.ones(1, 2))


def test_a_compiled_models_names():
    net = torch.compile(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), backend="eager")
    opt = hft.FTPAdamW(net.named_parameters(), exclude="1.*")
    net(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert list(opt.radii()) == ["_orig_mod.0.weight", "_orig_mod.0.bias"]


def test_tensors_can_be_excluded_without_names():
    a, b = (torch.nn.Parameter(torch.zeros(1, 2)) for _ in range(2))
    opt = hft.FTPAdamW([a, b], exclude=[b])
    for p in (a, b):
        p.grad = torch.ones_like(p)
    opt.step()
    assert list(opt.radii()) == [0]
