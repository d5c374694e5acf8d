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
ROWS = [torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
SGD = hft.sgd(lr=0.01)


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


def test_what_the_loss_closes_over_is_looked_at_again_where_it_changes():
    """In training mode a module writes statistics."""

    def norm() -> nn.Module:
        return nn.BatchNorm1d(3, dtype=F64).requires_grad_(False)

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return net(p * x).sum()

    for change in ("mode", "module"):
        net = norm().eval()
        slope(loss, SGD, ROWS)
        net = net.train() if change == "mode" else norm()
        with pytest.raises(RuntimeError, match="train_loss writes in place"):
            slope(loss, SGD, ROWS)


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


NET = {"norm": nn.BatchNorm1d(3, dtype=F64).requires_grad_(False).eval()}


@pytest.mark.parametrize("change", ["dict", "object", "module", "defaults", "code"])
def test_a_flag_that_changes_outside_is_seen(change: str):
    flags, plain, held = {"on": False}, type("Plain", (), {"on": False})(), torch.zeros((), dtype=F64)
    module = nn.Identity()
    module.on = False  # pyright: ignore[reportArgumentType]
    # Each by itself: of an object of any class nothing is remembered, and the rest would not be looked at.
    reads = {"dict": lambda: flags["on"], "object": lambda: plain.on, "module": lambda: module.on}
    is_on = reads.get(change, lambda: False)

    def loss(p: Tensor, x: Tensor, extra: bool = False) -> Tensor:
        if is_on() or extra:
            held.add_(1)
        return (p * x - 1).square().sum()

    def writes(p: Tensor, x: Tensor, extra: bool = False) -> Tensor:
        if not is_on():
            held.add_(1)
        return (p * x - 1).square().sum()

    changes = {
        "dict": lambda: flags.update(on=True),
        "object": lambda: setattr(plain, "on", True),
        "module": lambda: setattr(module, "on", True),
        "defaults": lambda: setattr(loss, "__defaults__", (True,)),
        "code": lambda: setattr(loss, "__code__", writes.__code__),
    }
    slope(loss, SGD)
    changes[change]()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(loss, SGD)


def test_a_value_in_the_batches_is_an_argument():
    held = torch.zeros((), dtype=F64)

    def loss(p: Tensor, batch: Any) -> Tensor:
        if batch[1]:
            held.add_(1)
        return (p * batch[0] - 1).square().sum()

    slope(loss, SGD, [(x, False) for x in DATA])
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(loss, SGD, [(x, True) for x in DATA])


def test_the_mode_of_a_module_in_a_dict_is_seen():
    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (NET["norm"](x) @ p - 1).square().mean()

    slope(loss, SGD, ROWS)
    NET["norm"].train()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(loss, SGD, ROWS)
    assert NET["norm"].num_batches_tracked == 0


@pytest.mark.parametrize("how", ["number", "weights"])
def test_what_an_update_closes_over_is_looked_at_again_where_it_changes(how: str):
    flags, net = {"on": False}, nn.Linear(1, 1, dtype=F64).requires_grad_(False)

    def update(g: Tensor, s: Any, p: Tensor, h: Any) -> Any:
        rate = 0.5 * h["lr"].item() + 0.5 * h["lr"] if flags["on"] else h["lr"]
        return p - rate * g * net.weight.reshape(()).sigmoid(), s

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return (p * x).square().sum()

    opt = SGD._replace(update=update)
    slope(loss, opt)
    if how == "number":
        flags["on"] = True
    else:
        net.requires_grad_(True)
    with pytest.raises((RuntimeError, ValueError), match="the optimizer (takes the number|uses a tensor)"):
        slope(loss, opt)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_batches():
    rows = torch.nested.nested_tensor([torch.ones(2, 3, dtype=F64), torch.ones(4, 3, dtype=F64)])

    def loss(p: Tensor, x: Tensor) -> Tensor:
        return torch.stack([(row @ p - 1).square().mean() for row in x.unbind()]).sum()

    assert slope(loss, SGD, [rows] * 2) != 0
