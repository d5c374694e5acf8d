"""Parameters and state that torch replaces under the optimizer: swapped tensors, converted models, functional steps,
the distributed checkpoint in one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ..support.compare import equal
from ..support.executions import every_execution
from ..support.ftp_training import Pure, build, every_class, loss, net, train, train_both, weights


@every_execution
@every_class
def test_swap_tensors_under_the_optimizer(name, execution):
    """Same object, other content: the run goes on from it, with the state of the object."""
    model, plain = net(), net()
    opt = build(name, model.named_parameters(), execution)
    reference = build(name, plain.named_parameters(), execution)
    train(model, opt, range(3))
    opt.zero_grad()
    for p in model.parameters():
        torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach() * 1.01))
    train(model, opt, range(3, 6))
    train(plain, reference, range(3))
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(p * 1.01)
    train(plain, reference, range(3, 6))
    assert equal(model.parameters(), plain.parameters())
    assert opt.radii() == reference.radii()
    assert set(opt.state) == set(model.parameters())
    assert opt.execution == execution


@pytest.fixture
def conversion(request):
    """How module.to replaces parameters: by p.data, or by torch.utils.swap_tensors."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(request.param == "swap")
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@every_execution
@pytest.mark.parametrize("name", ["FTPAdamW", "FTPSGD"])
@pytest.mark.parametrize(
    ("first", "then", "conversion"),
    [
        (torch.float32, torch.float64, "data"),
        (torch.float32, torch.float64, "swap"),
        (torch.float32, torch.bfloat16, "swap"),
        (torch.bfloat16, torch.float32, "swap"),
    ],
    indirect=["conversion"],
    ids=str,
)
@pytest.mark.usefixtures("conversion")
def test_a_model_is_converted_while_it_trains(first, then, name, execution):
    """State follows into the working dtype: as in the pure functions, which find the weights as they are."""
    sides = []
    for flags in (execution, "single"):
        model = net(dtype=first)
        opt = build(name, model.named_parameters(), flags)
        train(model, opt, range(3))
        kept = list(model.parameters())
        opt.zero_grad()
        model.to(then)
        assert all(p is q for p, q in zip(kept, model.parameters(), strict=True))
        train(model, opt, range(3, 6))
        real = torch.float64 if then == torch.float64 else torch.float32
        assert opt.state[kept[0]]["deviation"].dtype == opt.state[kept[0]]["radius"].dtype == real
        assert opt.state[kept[0]]["radius_step"] == 6
        assert opt.execution == flags
        sides.append((model, opt))
    for p, q in zip(*(side[0].parameters() for side in sides), strict=True):
        assert p.dtype == then
        torch.testing.assert_close(p, q, rtol=torch.finfo(then).eps if then.itemsize == 2 else 1e-4, atol=1e-5)
    assert sides[0][1].radii() == pytest.approx(sides[1][1].radii(), rel=1e-3)


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
    assert set(opt._fitted) <= {*model.parameters(), *other.parameters()}
    train(model, opt, [3])
    assert equal(model.parameters(), other.parameters())
    assert opt.radii() == radii
    train(model, opt, range(4, 6))
    assert set(opt._fitted) <= set(model.parameters())
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


@every_execution
@every_class
def test_a_run_that_begins_after_the_checkpoints_step_of_lr_0(name, execution):
    """The pure rule that makes this step, too: its anchor is where the run begins, its first gradient is 0."""
    model = net()
    opt = build(name, model.named_parameters(), execution)
    pure = Pure(name, model)
    get_optimizer_state_dict(model, opt)
    pure.step([torch.zeros_like(p) for p in model.parameters()], lr=0.0)
    assert all(torch.equal(opt.state[p]["anchor"], p) for p in model.parameters())
    train_both(model, opt, pure, range(4))
    assert opt.state[model[0].weight]["radius_step"] == 5
    assert opt.execution == execution
