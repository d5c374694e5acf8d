"""Accelerate: prepared, accumulated, in bfloat16, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from .runs import has_moved, is_equal, loader, network, pure

accelerate = pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

BUILD = {
    "FTPAdamW": lambda named: hft.FTPAdamW(named, lr=1e-2, exclude="2.*"),
    "FTP": lambda named: hft.FTP(torch.optim.RMSprop(named, lr=1e-2), exclude="2.*"),
    "SPD": lambda named: hft.SPD(torch.optim.AdamW(named, lr=1e-2), exclude="2.*"),
    "PureOptimizer": pure,
}


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerators of a process share their state, precision included."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def start(name: str, precision: str):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    net = network()
    opt = BUILD[name](net.named_parameters())
    return accelerator, *accelerator.prepare(net, opt, loader(), torch.optim.lr_scheduler.StepLR(opt, 2))


def train(accelerator, net, opt, data, schedule, after: int = 0) -> None:
    for x, y in accelerator.skip_first_batches(data, after) if after else data:
        with accelerator.accumulate(net):
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            opt.step()
            schedule.step()
            opt.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", BUILD)
def test_a_saved_state_goes_on_bit_for_bit(name, precision, tmp_path):
    run = start(name, precision)
    accelerator, net, opt, data, schedule = run
    for i, (x, y) in enumerate(data):
        with accelerator.accumulate(net):
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            opt.step()
            schedule.step()
            opt.zero_grad()
        if i == 3:
            accelerator.save_state(str(tmp_path), safe_serialization=True)
    assert has_moved(net, network())

    AcceleratorState._reset_state(True)
    again = start(name, precision)
    again[0].load_state(str(tmp_path))
    train(*again, after=4)
    assert is_equal(again[1], net)
    assert type(again[2].optimizer).__name__ == name
    if hasattr(opt.optimizer, "radii"):
        assert again[2].optimizer.radii() == opt.optimizer.radii()


def test_accumulated_steps_equal_a_plain_loop():
    run = start("FTPAdamW", "no")
    train(*run)
    net = network()
    opt = BUILD["FTPAdamW"](net.named_parameters())
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2)
    for i, (x, y) in enumerate(loader()):
        (nn.functional.cross_entropy(net(x), y) / 2).backward()
        if i % 2:
            opt.step()
            schedule.step()
            opt.zero_grad()
    assert {opt.state[p]["step"].item() for p in net.parameters()} == {3}
    assert is_equal(run[1], net)
    assert run[2].optimizer.radii() == opt.radii()


def test_a_prepared_optimizer_can_be_measured_and_watched():
    run, seen = start("FTPAdamW", "no"), []
    hft.watch(run[2], lambda step, layers: seen.append((step, layers)))
    train(*run)
    assert [step for step, _ in seen] == [1, 2, 3]  # of 6 batches, two at a time
    assert hft.measure(run[2]) == seen[-1][1]


def test_a_prepared_optimizer_is_no_base():
    """It leaves out steps between accumulated batches, of which the class around it would count each."""
    accelerator, net = Accelerator(cpu=True), network()
    prepared = accelerator.prepare_optimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="AcceleratedOptimizer is what a training library makes of an optimizer"):
        hft.FTP(prepared)
