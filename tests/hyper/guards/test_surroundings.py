"""What was seen of a loss and an update is remembered as long as all that it depends on is as it was."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards import surroundings, verdict
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


ONE_BY_ONE = {
    "graphs": (hft.Unroll(), 0),
    "points": (hft.Unroll(checkpoint=1), 2),  # of the first state a node does not know who made it
    "last": (hft.Unroll(truncate=1), 0),
    "first order": (hft.Unroll(first_order=True), 0),
}


@pytest.mark.parametrize(("strategy", "count"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_steps_that_are_made_one_by_one_are_known_too(looks: list[str], strategy: Any, count: int):
    opt = hft.per_step(momentum(right), lr=torch.full((5,), 0.1, dtype=F64, requires_grad=True))

    def walk() -> None:
        *_, last = hft.steps(opt, squares, torch.ones(3, dtype=F64), VECTORS * 2, strategy=strategy)
        last.params.sum().backward()

    walk()
    assert looks
    walk()  # where no update was looked at, its state may have no graph
    looks.clear()
    walk()
    assert looks == ["watched_operations"] * count


def test_a_training_of_one_step_is_known_after_one(looks: list[str]):
    for seen in (False, True):
        looks.clear()
        slope(squares, momentum(right), VECTORS[1:2], strategy=hft.Unroll())
        assert looks == ([] if seen else ["watched_operations"] * 2)  # at the loss and the update


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
        verdict._known((number,), True)
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


def test_under_each_nest_of_transforms_loss_and_updates_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    looks = entered(TorchFunctionMode, monkeypatch)

    def end(lr: Tensor) -> Tensor:
        return hft.train(opt, squares, given, VECTORS, hparams={"lr": lr}).params.sum()

    opt, given = momentum(right), torch.ones(3, dtype=F64)
    for nest in NESTS.values():
        counts = []
        for _ in range(2):
            looks.clear()
            nest(end)(torch.tensor(0.1, dtype=F64))
            counts.append((looks.count("watched_calls"), looks.count("read_outside")))
        assert counts == [(0 if nest is NESTS["vmap"] else LOOKS, 1), (0, 0)]


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


def test_a_loss_is_looked_at_again_where_what_it_depends_on_has_changed():
    flags = {"on": False}
    for _ in range(2):
        slope(lambda p, x: squares(p, x, flags["on"]))
    flags["on"] = True
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(lambda p, x: squares(p, x, flags["on"]))


def test_an_update_is_looked_at_again_where_what_it_closes_over_has_changed():
    flags = {"on": False}

    def update(g: Tensor, s: Any, p: Tensor, h: Any) -> Any:
        return p - (0.5 * h["lr"].item() + 0.5 * h["lr"] if flags["on"] else h["lr"]) * g, s

    opt = SGD._replace(update=update)
    slope(squares, opt)
    flags["on"] = True
    with pytest.raises(RuntimeError, match="the optimizer takes the number"):
        slope(squares, opt)


def test_a_value_in_the_batches_is_an_argument():
    def train_loss(p: Tensor, batch: Any) -> Tensor:
        return squares(p, *batch)

    slope(train_loss, data=[(x, False) for x in VECTORS])
    with pytest.raises(RuntimeError, match="train_loss writes in place"):
        slope(train_loss, data=[(x, True) for x in VECTORS])


# -- keys -------------------------------------------------------------------------------------------------------------


def no(*_: Any) -> bool:
    return False


def yes(*_: Any) -> bool:
    return True


def closing_over(x: Any) -> Callable[[], Any]:
    return lambda: x


class Net(nn.Module):
    chosen: Any = None

    def forward(self) -> Any:
        return self.chosen


def of_class(chosen: Any) -> nn.Module:
    Net.chosen = chosen
    return Net()


def with_attribute(x: Any, name: str, value: Any) -> Any:
    setattr(x, name, value)
    return x


def norm(training: bool) -> nn.Module:
    return nn.BatchNorm1d(3).train(training)


FLAG = False


def reading_a_global(value: bool) -> Callable[[], Any]:
    globals().update(FLAG=value)
    return lambda: FLAG


#: What a function depends on, as it is or as it becomes.
CHANGES: dict[str, Callable[[bool], Any]] = {
    "code": lambda on: yes if on else no,
    "a number": lambda on: closing_over(on),
    "a dict": lambda on: closing_over({"on": on}),
    "a default": lambda on: lambda extra=on: extra,
    "a default by name": lambda on: lambda *, extra=on: extra,
    "an attribute of the function": lambda on: with_attribute(closing_over(0), "writes", on),
    "what a built-in method belongs to": lambda on: closing_over({"on": on}.get),
    "a partial": lambda on: functools.partial(no, on),
    "a global": reading_a_global,
    "which function is first": lambda on: closing_over([yes if on else no, yes, no]),
    "a flag in a tensor": lambda on: closing_over(torch.tensor(int(on))),
    "whether a tensor requires grad": lambda on: closing_over(torch.ones((), requires_grad=on)),
    "an attribute of a tensor": lambda on: closing_over(with_attribute(torch.ones(()), "writes", on)),
    "a module": lambda on: closing_over(nn.Identity() if on else nn.Tanh()),
    "the mode of a module": lambda on: closing_over({"norm": norm(on)}),
    "which attribute a module has": lambda on: with_attribute(nn.Identity(), "writes" if on else "other", True),
    "whether a parameter requires grad": lambda on: nn.Linear(1, 1).requires_grad_(on),
    "a class attribute": lambda on: of_class(on),
    "a list of a class": lambda on: of_class([on]),
    "a property": lambda on: of_class(property(yes if on else no)),
    "a cached property": lambda on: of_class(functools.cached_property(yes if on else no)),
    "a static method": lambda on: of_class(staticmethod(yes if on else no)),
    "a module of a class": lambda on: of_class(norm(on)),
    "a module in a list of a class": lambda on: of_class(({"first": norm(on)}, 3)),
}


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
def test_a_key_is_the_same_as_long_as_what_it_depends_on_is(make: Callable[[bool], Any]):
    def key(on: bool) -> Any:
        return surroundings.surroundings(make(on))

    assert key(False) is not None
    assert key(False) == key(False)
    assert key(False) != key(True)


class Options(dict):
    writes = False


class HasSlots(nn.Module):
    __slots__ = ("held",)

    def forward(self) -> Any:
        return self.held


UNSEEN = {"an object": SimpleNamespace(on=False), "a dict of ones own class": Options(), "slots": HasSlots()}


@pytest.mark.parametrize("held", UNSEEN.values(), ids=UNSEEN)
def test_of_what_cannot_be_looked_through_there_is_no_key(held: Any):
    assert surroundings.surroundings(closing_over(held)) is None


def test_under_a_hook_on_all_modules_there_is_no_key():
    with nn.modules.module.register_module_forward_hook(lambda net, given, out: 2 * out):
        assert surroundings.surroundings(nn.Identity()) is None
    assert surroundings.surroundings(nn.Identity()) is not None


@pytest.mark.parametrize("kind", [{"__file__": "/mine/colorsys.py"}, {"__path__": ["/mine/colorsys"]}], ids=str)
def test_a_package_that_is_called_as_one_of_pythons_is_seen(kind: Any, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("colorsys")
    vars(module).update(kind)
    exec("flags = {'on': False}\ndef writes(): return flags['on']", vars(module))
    monkeypatch.setitem(sys.modules, "colorsys", module)
    surroundings._is_fixed.cache_clear()
    writes: Any = vars(module)["writes"]
    key = surroundings.surroundings(writes)
    vars(module)["flags"].update(on=True)
    assert surroundings.surroundings(writes) != key
    monkeypatch.undo()
    surroundings._is_fixed.cache_clear()


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
