"""Models of many kinds: parameters of every shape, tied, frozen, in no group; wrapped, in channels_last, two at once.

Each is compared with the pure rule, or with a run of a plain model.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from ..support.compare import equal
from ..support.executions import every_execution
from ..support.ftp_training import F64, build, every_class, feed, loss, net, train, weights


@every_execution
@every_class
def test_rows_of_a_table_that_never_occur_stay_exactly(name, execution):
    table = nn.Embedding(9, 4, padding_idx=3)
    before = table.weight.detach().clone()
    opt = build(name, table.parameters(), execution)
    for t in range(5):
        opt.zero_grad()
        (table(torch.tensor([0, t % 2, 3, 8])) - 1).pow(2).sum().backward()
        opt.step()
    moved = (table.weight.detach() != before).any(1)
    assert moved.nonzero().flatten().tolist() == [0, 1, 8]
    assert opt.execution == execution


class Tied(nn.Module):
    def __init__(self, share: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 6, bias=False, dtype=torch.float64) if share else None
        if self.head is not None:
            self.head.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.table(words)
        return x @ self.table.weight.T if self.head is None else self.head(x)


@every_execution
@every_class
def test_tied_weights_are_one_parameter(name, execution):
    words = torch.randint(0, 6, (10,))
    sides = []
    for share in (True, False):
        torch.manual_seed(0)
        model = Tied(share)
        # A state_dict has both names of the tensor, a wrapper's run the one that is used.
        anchor = copy.deepcopy(model.state_dict())
        opt = build(name, model.named_parameters(), execution, anchor=anchor)
        for _ in range(4):
            opt.zero_grad()
            nn.functional.cross_entropy(model(words), words.flip(0)).backward()
            opt.step()
        assert list(opt.radii()) == ["table.weight"]
        assert opt.execution == execution
        sides.append((model.table.weight.detach(), opt.radii()["table.weight"]))
    torch.testing.assert_close(sides[0][0], sides[1][0], **F64)
    assert sides[0][1] == pytest.approx(sides[1][1], rel=1e-9)
    model = Tied(True)
    with pytest.warns(UserWarning, match="no parameter of 1 to hold"):  # the head's weight is the table's
        free = build(name, model.named_parameters(), execution, exclude=model.head)
    model(words).sum().backward()
    free.step()
    assert free.radii() == {}


@every_execution
@every_class
def test_a_layer_that_is_frozen_first_starts_when_it_is_unfrozen(name, execution):
    """It is in the optimizer from the start; its anchor is what it holds at its own first step, and no other layer
    notices."""
    model = net()
    late = model[0]
    late.requires_grad_(False)
    opt = build(name, model.named_parameters(), execution)
    alone = None
    seen = []
    for t in range(9):
        if t == 3:
            with torch.no_grad():
                late.weight.mul_(1.5)  # loaded, say, while it was frozen
            late.requires_grad_(True)
            start = late.weight.detach().clone()
            alone = copy.deepcopy(late)
            single = build(name, [(f"0.{n}", p) for n, p in alone.named_parameters()], execution)
        if t == 7:
            late.requires_grad_(False)  # and frozen again
            held = weights(late)
        opt.zero_grad()
        loss(model, t).backward()
        seen.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        opt.step()
        if 3 <= t < 7:
            feed(alone.parameters(), seen[-1][:2], single)
            assert equal(late.parameters(), alone.parameters())
        elif t < 3:
            assert late.weight not in opt.state
    assert torch.equal(opt.state[late.weight]["anchor"], start)
    assert opt.radii()["0.weight"] == single.radii()["0.weight"] > 1e-4
    assert equal(late.parameters(), held)
    others = net()[2:]
    without = build(name, others.parameters(), execution)
    for grads in seen:
        feed(others.parameters(), grads[2:], without)
    assert equal(others.parameters(), list(model.parameters())[2:])
    assert opt.execution == execution


def wrap(kind: str, model: nn.Module) -> nn.Module:
    if kind == "DataParallel":
        return nn.DataParallel(model)
    if kind == "compile":
        return torch.compile(model, backend="eager")
    return nn.Sequential(*(checkpoint_wrapper(m) if isinstance(m, nn.Linear) else m for m in model))


@every_class
@pytest.mark.parametrize("kind", ["DataParallel", "compile", "checkpoint_wrapper"])
@pytest.mark.filterwarnings("ignore")  # torch's, about its wrappers
def test_a_wrapped_model_trains_as_the_bare_one(kind, name):
    """Excluded and anchored by the bare names; the checkpoint of the wrapped run goes on in the bare one."""
    bare = net()
    anchor = {n: p.detach() * 0.99 for n, p in bare.named_parameters() if not n.startswith("3.")}
    wrapped = wrap(kind, copy.deepcopy(bare))
    sides = []
    for model in (bare, wrapped):
        opt = build(name, model.named_parameters(), "foreach", exclude="3.*", anchor=anchor)
        train(model, opt)
        sides.append((model, opt))
    assert list(sides[0][1].radii()) != list(sides[1][1].radii())  # the names that the optimizer was given
    assert list(sides[0][1].radii().values()) == list(sides[1][1].radii().values())
    assert equal(bare.parameters(), wrapped.parameters())
    again = build(name, bare.named_parameters(), "foreach", exclude="3.*", anchor=anchor)
    again.load_state_dict(copy.deepcopy(sides[1][1].state_dict()))
    train(bare, again, range(5, 8))
    train(wrapped, sides[1][1], range(5, 8))
    assert equal(bare.parameters(), wrapped.parameters())
    assert list(again.radii()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


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
