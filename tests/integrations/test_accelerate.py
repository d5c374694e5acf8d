"""Accelerate: prepared, accumulated, in bfloat16, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from .runs import BUILD, by_hand, every_build, has_moved, is_equal, loader, network

accelerate = pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerators of a process share their state, precision included."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def start(name: str, precision: str = "no"):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    net = network()
    opt = BUILD[name](net.named_parameters())
    return accelerator, *accelerator.prepare(net, opt, loader(), torch.optim.lr_scheduler.StepLR(opt, 2))


def train(accelerator, net, opt, data, schedule, after: int = 0, save=None) -> None:
    for i, (x, y) in enumerate(accelerator.skip_first_batches(data, after) if after else data):
        with accelerator.accumulate(net):
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            opt.step()
            schedule.step()
            opt.zero_grad()
        if save and i == 3:
            accelerator.save_state(save, safe_serialization=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@every_build
def test_a_saved_state_goes_on_bit_for_bit(name, precision, tmp_path):
    whole = start(name, precision)
    train(*whole, save=str(tmp_path))
    assert has_moved(whole[1], network())
    AcceleratorState._reset_state(True)
    again = start(name, precision)
    again[0].load_state(str(tmp_path))
    train(*again, after=4)
    assert is_equal(again[1], whole[1])
    opt, theirs = again[2].optimizer, whole[2].optimizer
    assert type(opt).__name__ == name
    assert not hasattr(opt, "radii") or opt.radii() == theirs.radii()


def test_accumulated_steps_equal_a_plain_loop_and_can_be_watched():
    run, seen = start("FTPAdamW"), []
    hft.watch(run[2], lambda step, layers: seen.append((step, layers)))
    train(*run)
    net, opt = by_hand("FTPAdamW", every=2, decay=2)
    assert is_equal(run[1], net)
    assert run[2].optimizer.radii() == opt.radii()
    assert [step for step, _ in seen] == [1, 2, 3]  # of 6 batches, two at a time
    assert hft.measure(run[2]) == seen[-1][1]


def test_a_prepared_optimizer_is_no_base():
    """It leaves out steps between accumulated batches, of which the class around it would count each."""
    accelerator, net = Accelerator(cpu=True), network()
    prepared = accelerator.prepare_optimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="AcceleratedOptimizer is what a training library makes of an optimizer"):
        hft.FTP(prepared)
