"""Whether a rule needs the values of the weights: it is run without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import tree
from ..hparams import concrete

#: What may be asked without looking at values.
_ABOUT = frozenset(
    (
        *("shape", "dtype", "device", "layout", "ndim", "is_meta", "requires_grad", "size", "dim", "numel", "stride"),
        *("is_floating_point", "is_complex", "is_contiguous", "zeros_like", "new_zeros"),
    )
)
#: What changes the form of numbers alone.
_COPIES = frozenset(("to", "float", "double", "clone", "contiguous"))


class Unread(Tensor):
    """``W + moved`` for one leaf ``W`` of the params whose value is not known.

    A rule may move it, cast it, ask for its shape, multiply it by 0 (a weight decay that is off) or 1, and choose
    between two places of one leaf. Any other operation is an error. The tensor lies on the meta device, so operations
    that bypass this class find no values either.
    """

    moved: Tensor
    leaf: object  # the same for all that come from one leaf

    @staticmethod
    def at(moved: Tensor, leaf: object) -> Unread:
        new = torch.empty(moved.shape, dtype=moved.dtype, device="meta").as_subclass(Unread)
        new.moved, new.leaf = moved, leaf
        return new

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """``func``, where it does not need to know ``W``."""
        name, kwargs = _name(func), kwargs or {}
        if name in _WRITTEN_OUT and kwargs.keys() <= {"alpha", "value"} and (kwargs or name not in ("add", "sub")):
            return _WRITTEN_OUT[name](*args, **kwargs)
        mine = [isinstance(x, Unread) for x in args]
        moved = [x.moved if isinstance(x, Unread) else x for x in args]
        if any(isinstance(x, Unread) for x in tree.leaves([kwargs, *moved])):  # in a keyword or a list
            _refuse(name)
        if name in _ABOUT:
            return func(*moved, **kwargs)
        first = args[mine.index(True)]
        if name in _COPIES and mine[0]:
            return Unread.at(func(*moved, **kwargs), first.leaf)
        if kwargs or any(x.leaf is not first.leaf for x, own in zip(args, mine, strict=True) if own):
            _refuse(name)
        new = func(*moved) if name in ("add", "sub", "mul", "where") else None
        if new is None or new.shape != first.shape:
            _refuse(name)
        if (name, mine) == ("sub", [True, True]):
            return new
        if (name, mine) in _MOVES:
            return Unread.at(new, first.leaf)
        if name == "mul" and mine.count(True) == 1:
            other = moved[mine.index(False)]
            if _is(other, 0):
                return torch.zeros_like(new)
            if _is(other, 1):
                return Unread.at(new, first.leaf)
        _refuse(name)


#: What is several operations in one, in single ones.
_WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "add": lambda x, y, alpha: x + alpha * y,
    "sub": lambda x, y, alpha: x - alpha * y,
    "addcmul": lambda x, y, z, value=1: x + value * (y * z),
    "addcdiv": lambda x, y, z, value=1: x + value * (y / z),
}

#: Operations that give ``W`` plus something: their names, and which arguments are ``Unread``.
_MOVES = (
    ("add", [True, False]),
    ("add", [False, True]),
    ("sub", [True, False]),
    ("where", [False, True, True]),
)


def moves(update: Callable[[Any, Any, Any], tuple[Any, Any]], grads: Any, state: Any) -> tuple[Any, Any]:
    """The change of the params in ``update(grads, state, params)``, and the new state, whatever the params are.

    A leaf without a gradient has the move ``None``. Params get the dtypes of their gradients.

    Raises:
        ValueError: the result depends on the params.
    """
    leaves, rebuild = tree.flatten(grads)
    # Of a leaf without a gradient not even the shape is known: one with no entries fits to nothing.
    params = [Unread.at(torch.zeros(0) if g is None else torch.zeros_like(g), object()) for g in leaves]
    new, state = update(grads, state, rebuild(params))
    if any(isinstance(x, Unread) or (isinstance(x, Tensor) and x.is_meta) for x in tree.leaves(state)):
        _refuse("the state")
    updates = []
    for g, w, p in zip(leaves, rebuild.aligned(new), params, strict=True):
        if not isinstance(w, Unread) or w.leaf is not p.leaf or (g is None and w is not p):
            _refuse("the new params")
        updates.append(None if g is None else w.moved)
    return rebuild(updates), state


def _name(func: Any) -> str:
    """``Tensor.add``, ``torch.add`` and ``+`` as ``"add"``, an attribute by its name; an in-place one as it is."""
    name: str = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    name = name.removeprefix("__").removesuffix("__")
    return {"radd": "add", "rmul": "mul"}.get(name, name)


def _is(x: Any, number: int) -> bool:
    """Whether all of ``x`` is this number, and stays so: it is not differentiated in."""
    if isinstance(x, Tensor):
        return concrete(x) and not x.requires_grad and bool((x == number).all())
    return x == number


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        "the update of this optimizer needs params: update(grads, state, params=params). Their values are asked for in "
        f"{what!r}: by weight decay, an anchor, a norm of the weights, or a copy of them in the state"
    )
