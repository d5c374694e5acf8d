"""What was seen of a loss and an update is remembered as long as all that it depends on is as it was."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards import surroundings
from hyperopt_ftp.hyper.guards.update import LOOKS

from ...support.own_updates import (
    DATA,
    F64,
    STRATEGIES,
    W,
    acts_later,
    loss,
    momentum,
    right,
    slopes,
    takes_float,
    takes_item,
    takes_nothing,
)

ROWS = [torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
VECTORS = [torch.full((3,), 1.0 + k, dtype=F64) for k in range(3)]
SGD = hft.sgd(lr=0.01)


def slope(train_loss: Any, opt: Any = SGD, data: Any = VECTORS, over: str = "lr", **options: Any) -> Tensor:
    """Where steps are made again: what is captured, or written, is refused."""
    options = {"strategy": hft.Unroll(checkpoint=1)} | options
    given = torch.ones(3, dtype=F64)
    return hft.hypergradient(opt, train_loss, lambda p: p.sum(), given, data, over, **options)[1][over]


HELD = torch.zeros((), dtype=F64)


def squares(p: Tensor, x: Tensor, write: bool = False) -> Tensor:
    if write:
        HELD.add_(1)
    return (p * x - 1).square().sum()


def entered(kind: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all modes of that kind that are put around code from now on."""
    found, enter = list[str](), kind.__enter__

    def counted(self: Any) -> Any:
        found.append(type(self).__name__)
        return enter(self)

    monkeypatch.setattr(kind, "__enter__", counted)
    return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each look at the operations of a loss or an update."""
    return entered(TorchDispatchMode, monkeypatch)


def test_a_second_call_is_not_looked_at(looks: list[str]):
    opt = momentum(right)
    first = slope(squares, opt)
    assert looks == ["watched_operations"] * 5  # at the loss, and at two updates there and two back
    looks.clear()
    assert torch.equal(slope(squares, opt), first)
    assert looks == []
    for _ in range(3):  # a loss and an optimizer that are made anew for each call
        assert torch.equal(slope(lambda p, x: squares(p, x), momentum(lambda *given: right(*given))), first)
    assert looks == ["watched_operations"] * 5
    for change in (
        lambda: slope(squares, opt, [x[:1] for x in VECTORS]),  # other shapes, which take other memory
        lambda: slope(squares, momentum(takes_nothing)),
        lambda: slope(squares, opt, strategy=hft.Forward()),
    ):
        looks.clear()
        change()
        assert looks


def test_what_was_seen_is_remembered_where_calls_take_turns(looks: list[str]):
    opt = momentum(right)

    def turns() -> None:
        for strategy in (hft.Unroll(), hft.Forward()):
            for data in (VECTORS, VECTORS[:2]):
                slope(squares, opt, data, strategy=strategy)
        with torch.no_grad():
            hft.train(opt, squares, torch.ones(3, dtype=F64), VECTORS)

    turns()
    looks.clear()
    turns()
    assert looks == []
    for number in range(300):  # not all, for ever
        slope(lambda p, x, c=number: squares(p, x), opt, VECTORS[1:2])
    looks.clear()
    turns()
    assert looks


NESTS = {
    "grad": torch.func.grad,
    "grad of grad": lambda f: torch.func.grad(torch.func.grad(f)),
    "vmap": lambda f: lambda lr: torch.func.vmap(f)(lr[None]),
    "vmap of grad": lambda f: lambda lr: torch.func.vmap(torch.func.grad(f))(lr[None]),
    "jvp": lambda f: lambda lr: torch.func.jvp(f, (lr,), (lr,)),
}


def test_under_each_nest_of_transforms_updates_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    looks = entered(TorchFunctionMode, monkeypatch)

    def end(lr: Tensor) -> Tensor:
        return hft.train(opt, squares, given, VECTORS, hparams={"lr": lr}).params.sum()

    opt, given = momentum(right), torch.ones(3, dtype=F64)
    for nest in NESTS.values():
        counts = []
        for _ in range(2):
            looks.clear()
            nest(end)(torch.tensor(0.1, dtype=F64))
            counts.append(looks.count("watched_calls"))
        assert counts == [0 if nest is NESTS["vmap"] else LOOKS, 0]


def test_a_tensor_of_a_transform_is_refused_where_a_plain_one_was_seen():
    lr = scale = torch.tensor(0.1, dtype=F64)

    def end(lr: Tensor, captures: bool) -> Tensor:
        nonlocal scale
        scale = lr * 2 if captures else scale
        return hft.train(opt, squares, torch.ones(3, dtype=F64), VECTORS, strategy=strategy).params.sum() * lr

    opt = SGD._replace(update=lambda g, s, p, h: (p - h["lr"] * scale * g, s))
    strategy = hft.ZeroOrder(2, sigma=0.1)
    for captures in (False, False, True):
        refused = pytest.raises(ValueError, match="the optimizer uses a tensor of shape") if captures else nullcontext()
        with refused:
            torch.func.grad(end)(lr, captures)


@pytest.mark.parametrize("update", [takes_item, takes_float, acts_later])
def test_what_was_seen_where_it_is_allowed_does_not_count_elsewhere(update: Any):
    """Without a graph an update may take numbers; the updates of Forward have no graph, those of Implicit have."""
    opt = momentum(update)
    for strategy in [*STRATEGIES.values()] * 2:
        with torch.no_grad():
            hft.train(opt, loss, W, DATA, strategy=strategy)
        with pytest.raises(RuntimeError, match="optimizer takes the number of an hparam that a derivative is asked"):
            slopes(opt, strategy, len(DATA))


def test_an_hparam_of_the_loss_does_not_put_every_step_under_watch(looks: list[str]):
    def train_loss(p: Tensor, x: Tensor, h: Tensor) -> Tensor:
        return squares(p, x) + h * p.square().sum()

    slope(train_loss, over="loss", hparams={"loss": torch.tensor(0.1, dtype=F64)})
    assert len(looks) == 1


# Losses, and what makes them write in place. In training mode batch norm writes its statistics.

Changing = tuple[Callable[..., Tensor], Callable[[], Any]]


def norm() -> nn.Module:
    return nn.BatchNorm1d(3, dtype=F64).requires_grad_(False).eval()


def a_number() -> Changing:
    on = False

    def change() -> None:
        nonlocal on
        on = True

    return lambda p, x: squares(p, x, on), change


def a_dict() -> Changing:
    flags = {"on": False}
    return lambda p, x: squares(p, x, flags["on"]), lambda: flags.update(on=True)


def an_object() -> Changing:
    """Of any class, of which nothing is remembered."""
    flags = SimpleNamespace(on=False)
    return lambda p, x: squares(p, x, flags.on), lambda: setattr(flags, "on", True)


def a_class_attribute() -> Changing:
    class Net(nn.Module):
        writes = False

        def forward(self, p: Tensor, x: Tensor) -> Tensor:
            return squares(p, x, self.writes)

    net = Net()
    return lambda p, x: net(p, x), lambda: setattr(Net, "writes", True)


def a_module_of_a_class() -> Changing:
    class Net(nn.Module):
        norm = norm()

        def forward(self, p: Tensor, x: Tensor) -> Tensor:
            return self.norm(p * x).sum()

    net = Net()
    return lambda p, x: net(p, x), Net.norm.train


def a_module_in_a_list_of_a_class() -> Changing:
    class Net(nn.Module):
        norms = ({"first": norm()}, 3)

        def forward(self, p: Tensor, x: Tensor) -> Tensor:
            return self.norms[0]["first"](p * x).sum()

    net = Net()
    return lambda p, x: net(p, x), Net.norms[0]["first"].train


def a_cached_property() -> Changing:
    flags = {"on": False}

    class Net(nn.Module):
        @cached_property
        def writes(self) -> bool:
            return flags["on"]

        def forward(self, p: Tensor, x: Tensor) -> Tensor:
            self.__dict__.pop("writes", None)
            return squares(p, x, self.writes)

    net = Net()
    return lambda p, x: net(p, x), lambda: flags.update(on=True)


def which_attribute() -> Changing:
    net = nn.Identity()
    net.other = True

    def change() -> None:
        del net.other
        net.writes = True

    return lambda p, x: squares(p, x, hasattr(net, "writes")), change


class ReadsAGlobal(nn.Module):
    def forward(self, p: Tensor, x: Tensor) -> Tensor:
        return squares(p, x, GLOBALS["writes"])


GLOBALS = {"writes": False}


def a_global_of_forward() -> Changing:
    net = ReadsAGlobal()
    return lambda p, x: net(p, x), lambda: GLOBALS.update(writes=True)


def a_closed_tensor() -> Changing:
    flag = torch.tensor(0)
    return lambda p, x: squares(p, x, bool(flag == 1)), lambda: flag.fill_(1)


def an_attribute_of_the_loss() -> Changing:
    def train_loss(p: Tensor, x: Tensor) -> Tensor:
        return squares(p, x, train_loss.writes)

    train_loss.writes = False
    return train_loss, lambda: setattr(train_loss, "writes", True)


def an_attribute_of_a_dict() -> Changing:
    class Options(dict):
        writes = False

    options = Options()
    return lambda p, x: squares(p, x, options.writes), lambda: setattr(options, "writes", True)


def defaults() -> Changing:
    def train_loss(p: Tensor, x: Tensor, extra: bool = False) -> Tensor:
        return squares(p, x, extra)

    return train_loss, lambda: setattr(train_loss, "__defaults__", (True,))


def code() -> Changing:
    first, second = (lambda p, x: squares(p, x)), (lambda p, x: squares(p, x, True))
    return first, lambda: setattr(first, "__code__", second.__code__)


NETS = {"norm": norm()}


def the_mode_of_a_module_in_a_global_dict() -> Changing:
    return lambda p, x: NETS["norm"](p * x).sum(), NETS["norm"].train


def the_module() -> Changing:
    net = norm()

    def change() -> None:
        nonlocal net
        net = norm().train()

    return lambda p, x: net(p * x).sum(), change


CHANGES = [
    a_number, a_dict, an_object, a_class_attribute, a_global_of_forward, a_closed_tensor, an_attribute_of_the_loss,
    an_attribute_of_a_dict, defaults, code, the_mode_of_a_module_in_a_global_dict, the_module, a_module_of_a_class,
    a_module_in_a_list_of_a_class, a_cached_property, which_attribute,
]  # fmt: skip


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_loss_is_looked_at_again_where_what_it_depends_on_has_changed(make: Callable[[], Changing]):
    train_loss, change = make()
    for _ in range(2):
        slope(train_loss, data=ROWS)
    change()
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss, data=ROWS)


@pytest.mark.parametrize("kind", [{"__file__": "/mine/colorsys.py"}, {"__path__": ["/mine/colorsys"]}], ids=str)
def test_a_package_that_is_called_as_one_of_pythons_is_seen(kind: Any, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("colorsys")
    vars(module).update(kind)
    exec("flags = {'on': False}\ndef writes(): return flags['on']", vars(module))
    monkeypatch.setitem(sys.modules, "colorsys", module)
    surroundings._is_fixed.cache_clear()
    writes: Any = vars(module)["writes"]
    slope(lambda p, x: squares(p, x, writes()))
    vars(module)["flags"].update(on=True)
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(lambda p, x: squares(p, x, writes()))
    monkeypatch.undo()
    surroundings._is_fixed.cache_clear()


def test_code_at_the_address_of_code_that_has_gone_is_looked_at():
    def made(write: bool) -> Any:
        return eval(f"lambda p, x: squares(p, x, {write})").__code__

    train_loss = lambda p, x: None  # noqa: E731
    other, train_loss.__code__ = train_loss.__code__, made(False)
    address = id(train_loss.__code__)
    slope(train_loss)
    train_loss.__code__, codes = other, [made(True)]
    while id(codes[-1]) != address and len(codes) < 1000:
        codes.append(made(True))
    train_loss.__code__ = codes[-1]
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss)


def test_a_value_in_the_batches_is_an_argument():
    def train_loss(p: Tensor, batch: Any) -> Tensor:
        return squares(p, *batch)

    slope(train_loss, data=[(x, False) for x in VECTORS])
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss, data=[(x, True) for x in VECTORS])


@pytest.mark.parametrize("how", ["number", "tensor", "module"])
def test_an_update_is_looked_at_again_where_what_it_closes_over_has_changed(how: str):
    flags, scale, net = {"on": False}, torch.ones((), dtype=F64), nn.Linear(1, 1, dtype=F64).requires_grad_(False)

    def update(g: Tensor, s: Any, p: Tensor, h: Any) -> Any:
        rate = 0.5 * h["lr"].item() + 0.5 * h["lr"] if flags["on"] else h["lr"]
        return p - rate * g * scale * net.weight.reshape(()).sigmoid(), s

    opt = SGD._replace(update=update)
    slope(squares, opt)
    {"number": lambda: flags.update(on=True), "tensor": scale.requires_grad_, "module": net.requires_grad_}[how]()
    with pytest.raises((RuntimeError, ValueError), match="the optimizer (takes the number|uses a tensor)"):
        slope(squares, opt)


def test_nothing_is_held_that_the_loss_has_used():
    net = nn.Linear(3, 3, dtype=F64).requires_grad_(False)
    gone = weakref.ref(net.weight)

    def train_loss(p: Tensor, x: Tensor) -> Tensor:
        return net(p * x).square().sum()

    slope(train_loss)
    net = nn.Identity()
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_batches():
    rows = torch.nested.nested_tensor([torch.ones(2, 3, dtype=F64), torch.ones(4, 3, dtype=F64)])

    def train_loss(p: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([(row @ p - 1).square().mean() for row in rows]).sum()

    got = slope(lambda p, x: train_loss(p, x.unbind()), data=[rows] * 2)
    torch.testing.assert_close(got, slope(train_loss, data=[rows.unbind()] * 2), rtol=1e-12, atol=0)
