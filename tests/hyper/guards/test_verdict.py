"""What was found of a loss counts in a later call only while all that it depends on is the same; and it is bounded."""

from __future__ import annotations

import math
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


def with_weight(net: nn.Module, size: int) -> nn.Module:
    """``super()`` would put the class into a closure, and of that not all is visible."""
    net.register_parameter("w", nn.Parameter(torch.ones(size), requires_grad=False))
    return net


@pytest.fixture(autouse=True)
def _nothing_known():
    verdict._known.cache_clear()


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


def test_a_loss_of_a_module_is_remembered(keys: list[Any]):
    net = nn.Linear(2, 1)
    params, lr = {name: p.detach() for name, p in net.named_parameters()}, torch.tensor(0.1, requires_grad=True)
    hft.train(hft.sgd(lr=lr), lambda p, x: functional_call(net, p, (x,)).sum(), params, [torch.ones(2)] * 2)
    assert keys


def test_what_a_run_without_a_derivative_finds_stays_with_it():
    inputs = TrainInputs({}, torch.ones(2), None, [torch.ones(2)])
    problem = problem_of(hft.sgd(lr=0.1), lambda p, x: (p * x).sum(), verdict.Known())
    with torch.no_grad():
        first, second = (problem.guarded(inputs, derived=False).guards for _ in range(2))
    assert first is not None
    assert second is not None
    first.verdict.makes_leaves = True
    assert not second.verdict.makes_leaves
