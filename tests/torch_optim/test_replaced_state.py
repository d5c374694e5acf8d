"""Parameters and state that torch replaces under the optimizer: swapped tensors, functional steps,
the distributed checkpoint in one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ..support.compare import equal
from ..support.executions import every_execution
from ..support.ftp_training import build, every_class, loss, net, train, weights


@every_execution
@every_class
def test_swap_tensors_under_the_optimizer(name, execution):
    """Same object, other content: the run goes on from it, with the state of the object."""
    sides = []
    for swapped in (True, False):
        model = net()
        opt = build(name, model.named_parameters(), execution)
        train(model, opt, range(3))
        opt.zero_grad()
        for p in model.parameters():
            new = p.detach() * 1.01
            torch.utils.swap_tensors(p, torch.nn.Parameter(new)) if swapped else p.data.copy_(new)
        train(model, opt, range(3, 6))
        assert set(opt.state) == set(model.parameters())
        assert opt.execution == execution
        sides.append((list(model.parameters()), opt.radii()))
    assert equal(sides[0][0], sides[1][0])
    assert sides[0][1] == sides[1][1]


@every_execution
@every_class
def test_swap_in_optimizer_params_and_state(name, execution):
    """A step on other tensors through the live optimizer: they move as its own would, and it does not notice."""
    swap_in = getattr(torch.optim, "swap_in_optimizer_params_and_state", None)
    if swap_in is None:
        pytest.skip("this torch has no such function")
    model, other = net(), net()
    opt = build(name, model.named_parameters(), execution)
    train(model, opt, range(3))
    for _ in range(3):  # more than once: nothing of the strangers is kept
        loss(model, 3).backward()
        other.load_state_dict(model.state_dict())
        other.zero_grad()
        loss(other, 3).backward()
        before = weights(model)
        saved = copy.deepcopy(opt.state_dict())
        with swap_in(opt, dict(other.named_parameters()), saved):
            opt.step()
            radii = opt.radii()
        assert equal(model.parameters(), before)
        assert saved["state"][0]["radius_step"] == 4
    train(model, opt, [3])
    assert equal(model.parameters(), other.parameters())
    assert opt.radii() == radii
    train(model, opt, range(4, 6))
    straight = net()
    reference = build(name, straight.named_parameters(), execution)
    train(straight, reference, range(6))
    assert equal(model.parameters(), straight.parameters())
    assert opt.execution == execution


@every_execution
@every_class
def test_the_distributed_checkpoint_of_a_fresh_optimizer(name, execution):
    """It makes a step of lr = 0 to know the state's names: weights stay, and a checkpoint by names goes on exactly."""
    straight = net()
    reference = build(name, straight.named_parameters(), execution)
    train(straight, reference, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(straight, reference))
    model = net(seed=5)
    model.load_state_dict(straight.state_dict())
    before = weights(model)
    opt = build(name, model.named_parameters(), execution)
    fresh = get_optimizer_state_dict(model, opt)
    assert equal(model.parameters(), before)
    assert fresh["state"].keys() == saved["state"].keys() == dict(model.named_parameters()).keys()
    for n, state in fresh["state"].items():
        assert state.keys() == saved["state"][n].keys()
    set_optimizer_state_dict(model, opt, saved)
    assert equal(model.parameters(), before)
    train(model, opt, range(3, 6))
    train(straight, reference, range(3, 6))
    assert equal(model.parameters(), straight.parameters())
    assert opt.radii() == reference.radii()
    assert opt.execution == execution
