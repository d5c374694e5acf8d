"""What "the same" is in a test: equal to the last bit, and nothing has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Tensors in turn, as many on both sides."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def same(a: Any, b: Any) -> bool:
    """Tensors, numbers and containers of them; types, dtypes and signs of zeros included. A NaN equals itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dtype, a.shape, a.layout, a.device) != (b.dtype, b.shape, b.layout, b.device):
            return False
        bits = BITS[a.dtype.itemsize]
        return a.is_meta or torch.equal(*(x.detach().to_dense().view(bits) for x in (a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def kept(x: Any) -> Any:
    """A copy that nobody else holds, of tensors, containers and optimizers; tensors as keys become their identities."""
    if isinstance(x, torch.optim.Optimizer):
        return [kept(dict(x.state)), [kept({**g, "params": list(map(id, g["params"]))}) for g in x.param_groups]]
    if isinstance(x, Tensor):
        return x.detach().clone()
    if isinstance(x, dict):
        return {id(key) if isinstance(key, Tensor) else key: kept(value) for key, value in x.items()}
    return type(x)(map(kept, x)) if type(x) in (list, tuple) else x


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Floating-point tensors that are made without a dtype are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
