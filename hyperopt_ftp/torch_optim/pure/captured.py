"""Tensors that a function holds on to."""

from __future__ import annotations

import functools
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
    return next((x for x in _tensors(held, set()) if _address(x) in storages), None)


def _tensors(held: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(held) in seen:
        return
    seen.add(id(held))
    inside: list[Any] = []
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, FunctionType):
        inside = [*(held.__defaults__ or ()), *(held.__kwdefaults__ or {}).values()]
        used = (held.__globals__.get(name) for name in held.__code__.co_names)
        inside += [x for x in used if isinstance(x, (Tensor, dict, list, tuple))]
        for cell in held.__closure__ or ():
            try:
                inside.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
    elif isinstance(held, functools.partial):
        inside = [held.func, *held.args, *held.keywords.values()]
    elif isinstance(held, (dict, list, tuple, set)):
        inside = list(held.values() if isinstance(held, dict) else held)
    elif hasattr(held, "__self__"):
        inside = [held.__self__]
    elif hasattr(held, "__dict__") and not isinstance(held, (type, ModuleType)):
        inside = list(vars(held).values())
    for x in inside:
        yield from _tensors(x, seen)


def _address(x: Tensor) -> int:
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without a storage of its own
        return 0
