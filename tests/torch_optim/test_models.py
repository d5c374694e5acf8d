"""Models of which one tensor has two names, and models whose convolutions lie in channels_last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from ..support.executions import every_execution
from ..support.ftp_training import build, every_class


def test_tied_weights_are_one_parameter():
    model = nn.ModuleDict({"table": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["table"].weight
    anchor = copy.deepcopy(model.state_dict())
    assert len(anchor) == 2
    opt = hft.FTPSGD(model.named_parameters(), lr=0.1, anchor=anchor)
    with pytest.warns(UserWarning, match="no parameter of 1 to hold"):
        free = hft.FTPSGD(model.named_parameters(), lr=0.1, exclude=model["head"])
    model["table"].weight.sum().backward()
    opt.step()
    free.step()
    assert list(opt.radii()) == ["table.weight"]
    assert free.radii() == {}


def pictures() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip


@every_execution
@every_class
@pytest.mark.parametrize("when", ["before", "between", "loaded"])
@pytest.mark.usefixtures("one_thread")
def test_a_model_in_channels_last_trains_as_the_contiguous_one(when, name, execution):
    """Moved before the optimizer is built, between steps, or with a checkpoint of the contiguous run."""
    x, y = torch.randn(6, 3, 6, 6, dtype=torch.float64), torch.randint(0, 3, (6,))

    def run(model, opt, steps):
        for _ in range(steps):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()

    plain, moved = pictures(), pictures()
    anchor = copy.deepcopy(plain.state_dict())
    reference = build(name, plain.named_parameters(), execution, anchor=anchor)
    if when == "before":
        moved.to(memory_format=torch.channels_last)
    opt = build(name, moved.named_parameters(), execution, anchor=anchor)
    run(plain, reference, 3)
    run(moved, opt, 3)
    if when != "before":
        moved.to(memory_format=torch.channels_last)
    if when == "loaded":
        opt = build(name, moved.named_parameters(), execution, anchor=anchor)
        opt.load_state_dict(copy.deepcopy(reference.state_dict()))
    run(plain, reference, 3)
    run(moved, opt, 3)
    assert moved[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert opt.state[moved[0].weight]["deviation"].stride() == moved[0].weight.stride()
    for p, q in zip(moved.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.contiguous(), q, rtol=1e-9, atol=1e-10)
    assert opt.radii() == pytest.approx(reference.radii(), rel=1e-7)
    assert opt.execution == execution
