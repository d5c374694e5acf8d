"""Training loops: schedules, averages, lr = 0, late groups, gradients of zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..support.compare import equal
from ..support.executions import every_execution
from ..support.ftp_training import CLASSES, Pure, build, every_class, loss, net, train, weights


@every_execution
@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_lr_0_leaves_the_weights_exactly(dtype, name, execution):
    """From the start, and with a gradient: what torch.distributed.checkpoint does to a fresh optimizer, for one."""
    model = net(dtype=dtype)
    before = weights(model)
    opt = build(name, model.named_parameters(), execution, lr=0.0, decay=0.1)
    train(model, opt, range(3))
    assert equal(model.parameters(), before)
    assert all(opt.state[p]["radius_step"] == 3 for p in model.parameters())
    assert opt.execution == execution


@every_execution
@pytest.mark.parametrize(("name", "on_the_base"), [*((name, False) for name in CLASSES), ("FTP(AdamW)", True)])
def test_onecycle_moves_the_numbers_and_the_run_follows(on_the_base, name, execution):
    """lr and momentum (or beta1) of each step are those of torch's optimizer, and are given to the pure rule."""
    model = net()
    opt = build(name, model.named_parameters(), execution)
    pure = Pure(name, model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt.base if on_the_base else opt, max_lr=0.1, total_steps=8)
    stand_in = [nn.Parameter(torch.ones(1))]
    plain = torch.optim.SGD(stand_in, 0.05, 0.9) if name == "FTPSGD" else torch.optim.AdamW(stand_in, 0.05)
    expected = torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=0.1, total_steps=8)
    rates = set()
    for t in range(8):
        numbers = {key: plain.param_groups[0][key] for key in ("lr", "momentum", "betas") if key in plain.defaults}
        assert numbers == {key: opt.param_groups[0][key] for key in numbers}
        rates.add(numbers["lr"])
        opt.zero_grad()
        loss(model, t).backward()
        pure.step([p.grad for p in model.parameters()], **numbers)
        opt.step()
        pure.check(model, opt)
        plain.step()
        if t < 7:
            schedule.step()
            expected.step()
    assert len(rates) == 8
    assert opt.execution == execution


@contextmanager
def exchanged(model: nn.Module, average: AveragedModel) -> Iterator[None]:
    """The averages are the weights, and the other way round."""

    def turn() -> None:
        for p, q in zip(model.parameters(), average.module.parameters(), strict=True):
            p.data, q.data = q.data, p.data

    turn()
    yield
    turn()


@contextmanager
def copied_in(model: nn.Module, average: AveragedModel) -> Iterator[None]:
    """The weights are stored, overwritten and restored, as in many libraries of averages."""
    stored = weights(model)

    def copy_(values: Iterable[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(model.parameters(), values, strict=True):
                p.copy_(value)

    copy_(average.module.parameters())
    yield
    copy_(stored)


@every_execution
@every_class
@pytest.mark.parametrize(
    ("kind", "dtype"), [("swa", torch.float64), ("ema", torch.float32), ("swa", torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("how", [exchanged, copied_in], ids=lambda f: f.__name__)
def test_averages_that_are_swapped_in_to_evaluate_change_nothing(how, kind, dtype, name, execution):
    """The run without any average, bit for bit; in 16 bits the master copy is kept, as the weights come back."""
    model, plain = net(dtype=dtype), net(dtype=dtype)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if kind == "ema" else AveragedModel(model)
    opt = build(name, model.named_parameters(), execution)
    expected = []
    for t in range(5):
        train(model, opt, [t])
        average.update_parameters(model)
        expected.append(weights(model))
        with how(model, average):
            assert torch.equal(loss(model, 99, dtype), loss(average.module, 99, dtype)) == (how is copied_in or t == 0)
    reference = build(name, plain.named_parameters(), execution)
    train(plain, reference)
    assert equal(model.parameters(), plain.parameters())
    assert opt.radii() == reference.radii()
    if kind == "swa" and dtype != torch.bfloat16:
        for k, p in enumerate(average.module.parameters()):
            mean = torch.stack([step[k] for step in expected]).double().mean(0)
            torch.testing.assert_close(p.double(), mean, rtol=1e-5, atol=1e-6)


@every_execution
@every_class
def test_a_group_that_comes_late_is_an_optimizer_of_its_own(name, execution):
    """Progressive unfreezing: the group starts at its own first step, from what its weights are then."""
    model = net()
    first = model[0]
    opt = build(name, list(model[2:].named_parameters(prefix="late")), execution)
    for t in range(6):
        if t == 2:
            with torch.no_grad():
                first.weight.mul_(1.1)
            pure = Pure(name, first, lr=0.01, radius_lr=0.2)
            params = [(f"0.{n}", p) for n, p in first.named_parameters()]
            opt.add_param_group({"params": params, "radius_lr": 0.2, "lr": 0.01})
        model.zero_grad()
        loss(model, t).backward()
        if t >= 2:
            pure.step([p.grad for p in first.parameters()])
        opt.step()
        if t >= 2:
            pure.check(first, opt, "0.")
    assert len(opt.radii()) == 6
    assert opt.execution == execution


@every_execution
@every_class
@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_are_zero_and_not_none(to_none, name, execution):
    """With zero_grad(set_to_none=False) a frozen layer makes steps of gradient 0, as in the pure rule; else none."""
    model = net()
    first = model[0]
    opt = build(name, model.named_parameters(), execution)
    pure = Pure(name, first)
    for t in range(6):
        first.requires_grad_(t < 3)
        opt.zero_grad(set_to_none=to_none)
        loss(model, t).backward()
        assert (first.weight.grad is None) == (to_none and t >= 3)
        if not to_none or t < 3:
            pure.step([p.grad for p in first.parameters()])
        opt.step()
        pure.check(first, opt, "0.")
        if t == 2:
            held = weights(first)
    assert opt.state[first.weight]["radius_step"] == (3 if to_none else 6)
    assert equal(first.parameters(), held) == to_none  # Adam's and SGD's momenta go on
    assert opt.execution == execution
