"""Code that may take the number of a tensor is told by the names in it; of what cannot be seen nothing is known."""

from __future__ import annotations

import math
import operator
import statistics
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import hyperopt_ftp as hft
from hyperopt_ftp.hyper.guards.surroundings import may_read, surroundings

tensor_of = torch.tensor
exp = math.exp


def reads(*functions: Any) -> bool:
    key = surroundings(*functions)
    assert key is not None
    return may_read(key)


def by_import(h: Tensor) -> Tensor:
    import math

    return torch.ones(()) * math.exp(h)


def by_import_from(h: Tensor) -> Tensor:
    from torch import tensor

    return tensor(h)


def in_another(h: Tensor) -> Tensor:
    return by_import(h)


def in_an_inner_one(h: Tensor) -> Any:
    def inner() -> float:
        return h.item()

    return inner()


class Reads(nn.Module):
    def forward(self, h: Tensor) -> float:
        return self.scale * h.tolist()

    scale = 2.0


class Scales(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * self.scale if self.training else h

    scale = 2.0


def largest(h: Tensor) -> Tensor:
    from torch.nn.functional import relu

    if not isinstance(h, Tensor):
        raise TypeError(f"{h} is none")
    return max((relu(x) for x in reversed(list(h))), key=abs)


READS, SCALES = Reads(), Scales()

READ = {
    "item": lambda h: h.item(),
    "float": lambda h: float(h),
    "data": lambda h: h.data * 2,
    "tensor": lambda h: tensor_of(h),
    "torch.tensor": lambda h: torch.tensor([h, h]),
    "linspace": lambda h: torch.linspace(h, 1, 3),
    "getattr": lambda h: getattr(h, "it" + "em")(),
    "__getattribute__": lambda h: h.__getattribute__("it" + "em")(),
    "eval": lambda h: eval("h.it" + "em()"),
    "class of a method": lambda h: Tensor.item(h),
    "dunder": lambda h: h.__float__(),
    "math": lambda h: math.exp(h),
    "exp of math": lambda h: exp(h),
    "operator": lambda h: operator.index(h),
    "code of the standard library": lambda h: statistics.mean([h, h]),
    "a method bound": torch.ones(()).item,
    "partial": partial(in_another),
    "import": by_import,
    "import from": by_import_from,
    "another function": in_another,
    "an inner function": in_an_inner_one,
    "a default": lambda h, f=in_another: f(h),
    "a comprehension": lambda h: [x.item() for x in h],
    "a module": lambda h: READS(h),
    "a lambda in a list": lambda h, f=(lambda h: h.item(),): f[0](h),
}

NONE = {
    "arithmetic": lambda h, x: (h * x**2).sum() / len(x),
    "torch": lambda h, x: torch.softmax(h, 0) @ torch.stack([x, x]),
    "functional": lambda h, x: F.cross_entropy(h * x, x),
    "functions of torch": lambda h, x, ops=(torch.abs, F.gelu, F.avg_pool1d): sum(f(h) * x for f in ops),
    "a local variable": lambda item: [float_ for data in item for float_ in data],
    "a module": lambda h, x: functional_call(SCALES, {}, (x,)),
    "a loss of ours": hft.data_parallel(lambda p, x, h: (h * p * x).sum()),
    "another function": lambda h: largest(h),
}


@pytest.mark.parametrize("name", READ)
def test_code_that_may_read(name: str):
    assert reads(READ[name])
    assert reads(lambda p: p.sum(), READ[name])  # of a loss and an update, either


@pytest.mark.parametrize("name", NONE)
def test_code_that_reads_none(name: str):
    assert not reads(NONE[name])
