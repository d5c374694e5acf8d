"""What was found of a loss counts in a later call only while all that it depends on is the same; and it is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.core.inputs import TrainInputs
from hyperopt_ftp.hyper.guarded import problem_of
from hyperopt_ftp.hyper.guards import verdict

AGAIN = hft.Unroll(checkpoint=1)
#: Read as a global by a module's forward.
writes = False


def gained(p: Any, write: Any) -> torch.Tensor:
    """A loss that writes into a param, as torch does not count, if it is told to."""
    w = p["w"]
    value = (w**2).sum()
    if write:
        w.data.mul_(1.5)
    return value


def with_weight(net: nn.Module, size: int) -> nn.Module:
    """``super()`` would put the class into a closure, and of that not all is visible."""
    net.register_parameter("w", nn.Parameter(torch.ones(size), requires_grad=False))
    return net


def a_closed_flag() -> tuple[Callable[..., Any], Callable[[], None]]:
    flag = torch.tensor(0)
    return lambda p, x: gained(p, flag == 1), lambda: flag.fill_(1)


def a_class_attribute() -> tuple[Callable[..., Any], Callable[[], None]]:
    class Net(nn.Module):
        write = False

        def forward(self, x):
            return gained({"w": self.w}, self.write)

    net = with_weight(Net(), 3)
    return lambda p, x: functional_call(net, p, (x,)), lambda: setattr(Net, "write", True)


def an_attribute_of_the_loss() -> tuple[Callable[..., Any], Callable[[], None]]:
    def loss(p, x):
        return gained(p, loss.write)

    loss.write = False
    return loss, lambda: setattr(loss, "write", True)


def a_global_of_forward() -> tuple[Callable[..., Any], Callable[[], None]]:
    class Net(nn.Module):
        def forward(self, x):
            return gained({"w": self.w}, writes)

    net = with_weight(Net(), 3)
    return lambda p, x: functional_call(net, p, (x,)), lambda: globals().update(writes=True)


def an_item_of_a_dict_of_another_class() -> tuple[Callable[..., Any], Callable[[], None]]:
    class Options(dict):
        write = False

    options = Options()
    return lambda p, x: gained(p, options.write), lambda: setattr(options, "write", True)


def an_object() -> tuple[Callable[..., Any], Callable[[], None]]:
    options = SimpleNamespace(write=False)
    return lambda p, x: gained(p, options.write), lambda: setattr(options, "write", True)


CHANGES = [
    a_closed_flag, a_class_attribute, an_attribute_of_the_loss, a_global_of_forward,
    an_item_of_a_dict_of_another_class, an_object,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_known():
    globals().update(writes=False)
    verdict._known.cache_clear()


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_write_is_seen_that_begins_in_a_later_call(make: Callable[[], Any]):
    loss, change = make()

    def trained():
        lr, w = torch.tensor(0.1, requires_grad=True), {"w": torch.ones(3)}
        hft.train(hft.sgd(lr=lr), loss, w, [0.0] * 3, strategy=AGAIN).params["w"].sum().backward()

    trained()
    trained()
    change()
    with pytest.raises(RuntimeError, match="writes in place"):
        trained()


#: Of a transform, or not.
TRACKED = None


class ReadsAGlobal(nn.Module):
    def forward(self, x):
        return (TRACKED * (self.w - x) ** 2 + self.w**2).sum()


def test_under_a_transform_a_captured_tensor_is_refused_after_another_call_too():
    """In the first call the tensor is a plain one, in the second the transform tracks it."""
    net, xs = with_weight(ReadsAGlobal(), 1), [torch.ones(1)] * 60

    def end(lr, c):
        globals().update(TRACKED=c)
        opt, loss = hft.sgd(lr=lr), lambda p, x: functional_call(net, p, (x,))
        return (
            hft.train(opt, loss, {"w": torch.zeros(1)}, xs, strategy=hft.Implicit(tolerance=math.inf)).params["w"].sum()
        )

    lr, c = torch.tensor(0.1), torch.tensor(1.0)
    torch.func.grad(lambda x: end(x, c))(lr)
    with pytest.raises(ValueError, match="that a derivative is taken in"):
        torch.func.grad(end, (0, 1))(lr, c)


# -- what is remembered ----------------------------------------------------------------------------------------------


def size(key: Any) -> int:
    return 1 + sum(map(size, key)) if isinstance(key, tuple) else 1


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found, known = [], verdict._known

    def kept(*key):
        found.append(key)
        return known(*key)

    monkeypatch.setattr(verdict, "_known", kept)
    return found


def test_what_a_loss_with_a_log_in_its_closure_leaves_is_bounded(keys: list[Any]):
    log: list[float] = []

    def loss(p, x):
        log.extend([0.5] * 1000)
        return ((p - x) ** 2).sum()

    for _ in range(30):  # 30,000 numbers in the end
        lr = torch.tensor(0.1, requires_grad=True)
        hft.train(hft.sgd(lr=lr), loss, torch.ones(2), [0.0], strategy=AGAIN).params.sum().backward()
    assert log
    assert keys
    assert max(map(size, keys)) < 20_000  # of each number a kind and the number
    assert len(keys) < 10  # none where the closure is larger than is worth to be looked at


def test_verdicts_are_as_many_as_the_cache_has_places():
    for n in range(300):
        lr = torch.tensor(0.1, requires_grad=True)
        hft.train(hft.sgd(lr=lr), lambda p, x, n=n: ((p - n) ** 2).sum(), torch.ones(1), [0.0])
    info = verdict._known.cache_info()
    assert info.currsize == info.maxsize == 256


def test_a_loss_of_a_module_is_remembered(keys: list[Any]):
    net = nn.Linear(2, 1)
    params, lr = {name: p.detach() for name, p in net.named_parameters()}, torch.tensor(0.1, requires_grad=True)
    hft.train(hft.sgd(lr=lr), lambda p, x: functional_call(net, p, (x,)).sum(), params, [torch.ones(2)] * 2)
    assert keys


def test_what_a_run_without_a_derivative_finds_stays_with_it():
    inputs = TrainInputs({}, torch.ones(2), None, [torch.ones(2)])
    problem = problem_of(hft.sgd(lr=0.1), lambda p, x: (p * x).sum())
    with torch.no_grad():
        first, second = (problem.guarded(inputs, derived=False).guards for _ in range(2))
    assert first is not None
    assert second is not None
    first.verdict.makes_leaves = True
    assert not second.verdict.makes_leaves
