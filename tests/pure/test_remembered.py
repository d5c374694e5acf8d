"""What a loss and an update were seen to do is remembered, as long as all that they depend on is as it was."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards.writes import refuse_writes

F64 = torch.float64
DATA = [torch.full((3,), 1.0 + k, dtype=F64) for k in range(3)]
START = torch.ones(3, dtype=F64)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of those whose operations are looked at, one for each look."""
    found, enter = [], refuse_writes.__enter__

    def counted(self: refuse_writes) -> Any:
        found.append(self._who.name)
        return enter(self)

    monkeypatch.setattr(refuse_writes, "__enter__", counted)
    return found


def slope(loss: Any, opt: Any, data: Any = DATA, over: str = "lr", **options: Any) -> Tensor:
    return hft.hypergradient(opt, loss, lambda p: p.sum(), START, data, over, **options)[1][over]


def test_a_second_call_is_not_looked_at(looks: list[str]):
    opt = hft.adam(lr=0.1)

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (p * x - 1).square().sum()

    first = slope(loss, opt)
    assert looks == ["train_loss", "the optimizer", "the optimizer"]
    looks.clear()
    assert torch.equal(slope(loss, opt), first)
    assert looks == []
    slope(loss, opt, [x[:1] for x in DATA])  # other shapes, which take other memory
    slope(loss, hft.adam(lr=0.1))
    slope(loss, opt, strategy=hft.Forward())
    assert looks.count("train_loss") == 3


def test_an_hparam_of_the_loss_does_not_put_every_step_under_watch(looks: list[str]):
    def loss(p: Tensor, x: Tensor, h: Tensor) -> Tensor:
        return (p * x - 1).square().sum() + h * p.square().sum()

    slope(loss, hft.sgd(lr=0.01), over="loss", hparams={"loss": torch.tensor(0.1, dtype=F64)})
    assert looks.count("train_loss") == 1


class Switch(nn.Module):
    """In training mode it counts in a buffer of its own; the graph is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x.square()


def test_what_the_loss_closes_over_is_looked_at_again_where_it_changes():
    net, opt = Switch().eval(), hft.sgd(lr=0.1)

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return net(p * x).sum()

    slope(loss, opt)
    net.train()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(loss, opt)
    net = Switch().eval()
    slope(loss, opt)
    net = Switch()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(loss, opt)


def test_a_captured_tensor_that_requires_grad_since_is_refused():
    scale = torch.ones((), dtype=F64)
    opt = hft.sgd(lr=0.1)

    def update(g: Any, s: Any, p: Any, h: Any = None) -> Any:
        new, s = opt.update(g, s, p, h)
        return new * scale, s

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (p * x).square().sum()

    mine = opt._replace(update=update)
    slope(loss, mine)
    scale.requires_grad_()
    with pytest.raises(ValueError, match="the optimizer uses a tensor"):
        slope(loss, mine)


def test_a_branch_that_another_value_takes_is_looked_at():
    """A number in the closure is part of what is remembered."""
    power, opt = 2, hft.sgd(lr=0.01)

    def loss(p: Tensor, x: Tensor, h: Tensor) -> Tensor:
        factor = h.item() if power == 3 else 1.0
        return factor * (p * x).square().sum() + h * p.square().sum()

    hparams = {"loss": torch.tensor(0.5, dtype=F64)}
    slope(loss, opt, over="loss", hparams=hparams)
    power = 3
    with pytest.raises(RuntimeError, match="takes the number of an hparam"):
        slope(loss, opt, over="loss", hparams=hparams)


def test_nothing_is_held_that_the_loss_has_used():
    net = nn.Linear(3, 3, dtype=F64).requires_grad_(False)
    gone = weakref.ref(net.weight)

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return net(p * x).square().sum()

    slope(loss, hft.sgd(lr=0.01))
    net = nn.Identity()
    gc.collect()
    assert gone() is None
