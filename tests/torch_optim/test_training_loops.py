"""Training loops: accumulated and clipped gradients, closures, schedules, averages, lr = 0, late groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ..support.compare import equal, kept, same
from ..support.executions import every_execution
from ..support.ftp_training import CLASSES, Pure, build, every_class, loss, net, train, train_both, weights


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
@every_class
@pytest.mark.parametrize("maximize", [False, True])
def test_a_step_leaves_gradients_as_they_are(maximize, name, execution):
    """Else gradients that are accumulated over steps would be wrong."""
    model = net()
    opt = build(name, model.parameters(), execution, maximize=maximize, decay=0.1)
    for t in range(3):
        loss(model, t).backward()  # on top of the others
        before = [p.grad.clone() for p in model.parameters()]
        opt.step()
        assert equal((p.grad for p in model.parameters()), before)


@every_execution
@every_class
def test_gradients_that_are_accumulated_and_clipped(name, execution):
    """Two batches a step, then clip_grad_norm_: the pure rule on gradients that were made apart."""
    model, other = net(), net()
    opt = build(name, model.named_parameters(), execution)
    pure = Pure(name, other)
    clipped = 0
    for t in range(0, 10, 2):
        opt.zero_grad()
        for k in (t, t + 1):
            (loss(model, k) / 2).backward()
        clipped += bool(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5)
        opt.step()
        other.load_state_dict(pure.values)
        grads = torch.autograd.grad((loss(other, t) + loss(other, t + 1)) / 2, list(other.parameters()))
        size = torch.cat([g.flatten() for g in grads]).norm()
        pure.step([g * (0.5 / (size + 1e-6)).clamp(max=1) for g in grads])
        pure.check(model, opt)
    assert clipped >= 2
    assert opt.execution == execution


@every_execution
@every_class
def test_a_closure_equals_a_loop(name, execution):
    """Also inside no_grad: the closure has gradients."""
    model, other = net(), net()
    opt = build(name, model.named_parameters(), execution)
    plain = build(name, other.named_parameters(), execution)
    for t in range(5):

        def closure(t=t):
            opt.zero_grad()
            value = loss(model, t)
            value.backward()
            return value

        with torch.no_grad():
            value = opt.step(closure)
        expected = loss(other, t)
        assert torch.equal(value, expected)
        plain.zero_grad()
        expected.backward()
        plain.step()
    assert equal(model.parameters(), other.parameters())
    assert opt.radii() == plain.radii()


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
def test_update_bn_of_an_average_is_none_of_the_optimizers_business(name, execution):
    """Statistics are of the averages: the run without them goes the same way, and radii are of parameters alone."""
    sides = []
    for averages in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        average = AveragedModel(model, use_buffers=False)
        opt = build(name, model.named_parameters(), execution)
        for t in range(4):
            train(model, opt, [t])
            if averages:
                average.update_parameters(model)
                before = kept(opt)
                batches = [
                    torch.randn(8, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2)
                ]
                update_bn(batches, average)
                assert same(kept(opt), before)
                inner = average.module[0](torch.cat(batches))
                torch.testing.assert_close(average.module[1].running_mean, inner.mean(0), rtol=1e-12, atol=1e-12)
        sides.append((model, opt))
    (plain, reference), (model, opt) = sides
    assert equal(model.state_dict().values(), plain.state_dict().values())
    assert opt.radii() == reference.radii()
    assert opt.radii().keys() == dict(model.named_parameters()).keys()
    assert opt.execution == execution


@every_execution
@every_class
def test_training_goes_on_from_averaged_weights(name, execution):
    """Averages swapped in for good are where the next step starts: c is taken from them, the state goes on."""
    model = net()
    average = AveragedModel(model)
    opt = build(name, model.named_parameters(), execution)
    pure = Pure(name, model)
    for t in range(4):
        train_both(model, opt, pure, [t])
        average.update_parameters(model)
    assert not equal(average.module.parameters(), model.parameters())
    model.load_state_dict(average.module.state_dict())
    pure.values = {n: p.detach().clone() for n, p in average.module.named_parameters()}
    train_both(model, opt, pure, range(4, 8))
    assert opt.execution == execution


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
