"""What a training loss and an update have been seen to do by looking at each of their operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..core.problem import Measured
from ..core.transforms import under_transform


class Asked(NamedTuple):
    """What is asked of a training, and how it is run.

    Attributes:
        derived: whether anything is differentiated; if not, the loss may write and use any kernel.
        looked_at: whether captured tensors are of interest; if not, a loss has to be one, and that is all.
        needs_grad: whether a derivative through the training gradient may be asked for; under vmap alone it is not.
        twice: whether the strategy differentiates gradients again in all that they are taken in.
        compiled: whether steps run as programs, so that each call is a look: what another program does may leave no
            trace in the graph.
        inside_function: whether it runs inside an ``autograd.Function``, with the transforms around it switched off.
    """

    derived: bool = True
    looked_at: bool = True
    needs_grad: bool = True
    twice: bool = False
    compiled: bool = False
    inside_function: bool = False


@dataclass
class Verified:
    """Guards look again at what is not in it.

    Attributes:
        graphs: of the loss, by numbers that tell them apart, for each way in which it is called.
        outside: tensors that the loss uses beside its arguments.
        has_hooks: whether the loss puts hooks on what is saved for the backward pass.
        makes_leaves: whether the loss lets tensors require grad itself.
        updates: how many of each kind have been looked at.
        warned: whether there was a warning, which the next call is to give again.
        measured: what the loss takes.
    """

    graphs: dict[tuple[bool, int], set[int]] = field(default_factory=dict)
    outside: list[ref[Tensor]] = field(default_factory=list)
    has_hooks: bool = False
    makes_leaves: bool = False
    updates: Counter[str] = field(default_factory=Counter)
    warned: bool = False
    measured: Measured = field(default_factory=Measured)


def verified(train_loss: Callable[..., Any], update: Callable[..., Any], asked: Hashable) -> Verified:
    """What is known of these functions from an earlier call, if all that they depend on is as it was.

    That is: what they close over and name in their modules, the training mode of modules and whether tensors require
    grad among it, and what is ``asked`` of them. Under a transform, and of other callables, nothing is remembered.
    """
    if under_transform() or type(train_loss) is not FunctionType or type(update) is not FunctionType:
        return Verified()
    rows = _KNOWN.setdefault(train_loss, WeakKeyDictionary())
    state = (*_surroundings(train_loss, set()), *_surroundings(update, set()), asked)
    before, found = rows.get(update, (None, None))
    if found is None or before != state or found.warned:
        found = Verified()
        rows[update] = state, found
    return found


_KNOWN: WeakKeyDictionary[Callable[..., Any], WeakKeyDictionary[Callable[..., Any], tuple[Any, Verified]]]
_KNOWN = WeakKeyDictionary()

#: Packages whose functions look at nothing outside that changes.
_FIXED = (torch.__name__, __name__.partition(".")[0])


def _surroundings(value: Any, seen: set[int]) -> Iterator[Hashable]:
    """What the outcome of a function may depend on beside its arguments."""
    if value is None or isinstance(value, (bool, int, float, str)):
        yield value
        return
    yield id(value)
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple):
        for x in value:
            yield from _surroundings(x, seen)
    elif isinstance(value, Tensor):
        yield value.requires_grad
    elif isinstance(value, nn.Module):
        yield tuple(module.training for module in value.modules())
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # empty
                yield from _surroundings(cell.cell_contents, seen)
        if (value.__module__ or "").partition(".")[0] not in _FIXED:
            for name in _names(value.__code__):
                if name in value.__globals__:
                    yield from _surroundings(value.__globals__[name], seen)


def _names(code: CodeType) -> Iterator[str]:
    """Globals that code, and that of the functions in it, may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
