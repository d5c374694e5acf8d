"""Tensors that a function holds on to."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor


def captured(held: Any, storages: Collection[int]) -> Tensor | None:
    """The first tensor in a closure, a default or a container inside ``held`` that lies in one of the storages.

    Args:
        held: a function, or anything that holds others.
        storages: their addresses.

    >>> import torch
    >>> from hyperopt_ftp.torch_optim.pure.captured import captured
    >>> w = torch.ones(2)
    >>> function = lambda x: x + w
    >>> captured(function, {w.untyped_storage().data_ptr()}) is w, captured(function, set())
    (True, None)
    """
    return next((x for x in _tensors(held) if _address(x) in storages), None)


def _tensors(held: Any) -> Iterator[Tensor]:
    seen, left = set[int](), [held]
    while left:
        x = left.pop()
        if id(x) in seen or isinstance(x, (type, ModuleType)):
            continue
        seen.add(id(x))
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, FunctionType):  # of its module's names, those that it uses
            used = (x.__globals__.get(name) for name in x.__code__.co_names)
            left += [y for y in used if isinstance(y, (Tensor, dict, list, tuple))]
            left += [x.__closure__, x.__defaults__, x.__kwdefaults__]
        else:
            left += gc.get_referents(x)


def _address(x: Tensor) -> int:
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without a storage of its own
        return 0
