"""The results of checking each operation of a training loss and an update."""

from __future__ import annotations

import sys
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ...hparams import Domain
from ..core.transforms import kinds_of_transforms


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
    """What checks of a training loss and an update have found; guards check again what is not in it.

    Attributes:
        graphs: of the loss, by numbers that tell them apart, for each way in which it is called.
        outside: tensors that the loss uses beside its arguments.
        has_hooks: whether the loss puts hooks on what is saved for the backward pass.
        makes_leaves: whether the loss itself makes tensors require grad.
        updates: how many of each kind have been checked.
        constants: numbers that the loss computes with, if it also reads numbers of params.
        warned: whether there was a warning, which the next call repeats.
        bytes: of all tensors that the loss makes in a step.
    """

    graphs: dict[tuple[bool, int], set[int]] = field(default_factory=dict)
    outside: list[ref[Tensor]] = field(default_factory=list)
    has_hooks: bool = False
    makes_leaves: bool = False
    constants: set[complex] | None = None
    updates: Counter[str] = field(default_factory=Counter)
    warned: bool = False
    bytes: int = 0


def verified(
    train_loss: Callable[..., Any], update: Callable[..., Any], asked: tuple[Any, ...], others: Sequence[Any]
) -> Verified:
    """The results of earlier checks of these functions, if all that they depend on is unchanged.

    That is what is ``asked`` of them, the transforms around, ``others`` that they are given, what they close over, and
    the globals they name: numbers and strings by value, tensors by whether they require grad, modules with all their
    attributes. Nothing is remembered if anything else is among it, or for callables that are no functions.
    """
    if type(train_loss) is not FunctionType or type(update) is not FunctionType:
        return Verified()
    now = _surroundings(train_loss, update, *others)
    if now is None:
        return Verified()
    rows = _KNOWN.setdefault(train_loss, WeakKeyDictionary()).setdefault(update, deque(maxlen=ROWS))
    state = asked, kinds_of_transforms(), now[0]
    for before, objects, found in [*rows]:
        # An object that has gone may have left its number to another one.
        if before == state and not found.warned and all(known() is not None for known in objects):
            return found
    found = Verified()
    rows.append((state, now[1], found))
    return found


#: Results that are kept of a loss and an update: calls with a graph and without one take turns, and batches of shapes.
ROWS = 8
_Rows: TypeAlias = deque[tuple[Any, list[ref[Any]], Verified]]
_KNOWN: WeakKeyDictionary[Callable[..., Any], WeakKeyDictionary[Callable[..., Any], _Rows]] = WeakKeyDictionary()

_OWN = __name__.partition(".")[0]
#: Packages of which functions, classes and modules are what they are.
_FIXED = {torch.__name__, "numpy", "einops", "builtins", *sys.stdlib_module_names}
_VALUES = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Domain))
#: Objects up to which it is worth to look at them all.
_MOST = 20_000


def _surroundings(*values: Any) -> tuple[list[Any], list[ref[Any]]] | None:
    """What functions depend on beside their arguments; ``None`` if not all of it is visible."""
    state: list[Any] = []
    objects: list[ref[Any]] = []
    seen: set[int] = set()
    stack = [*values]
    while stack:
        x = stack.pop()
        kind = type(x)
        if kind in _VALUES:
            state.append((kind, x))
            continue
        state.append(id(x))
        if id(x) in seen:
            continue
        seen.add(id(x))
        if len(seen) > _MOST:
            return None
        if kind is CodeType:
            pass  # is what it is
        elif kind is FunctionType:
            stack += [*_of_function(x)]
        elif isinstance(x, Tensor):
            state.append(x.requires_grad)
        elif isinstance(x, (tuple, list, set, frozenset)):
            state.append(len(x))
            stack += x
            continue  # its entries say all
        elif isinstance(x, dict):
            state.append(len(x))
            stack += [*x.keys(), *x.values()]
            continue
        elif isinstance(x, (types.ModuleType, type, types.BuiltinFunctionType)):
            name = x.__name__ if isinstance(x, types.ModuleType) else x.__module__
            package = str(name or "builtins").partition(".")[0]
            if package not in _FIXED and package != _OWN:
                return None
        elif isinstance(x, nn.Module) or str(getattr(kind, "__module__", "")).partition(".")[0] == _OWN:
            stack += [*vars(x).values()] if hasattr(x, "__dict__") else []
        else:
            return None
        try:
            objects.append(ref(x))
        except TypeError:  # nobody would see it go
            return None
    return state, objects


def _of_function(function: FunctionType) -> Iterator[Any]:
    package = (function.__module__ or "").partition(".")[0]
    if package in _FIXED:
        return
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty
            yield cell.cell_contents
    if package != _OWN:
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    """Globals that code, and the functions in it, may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
