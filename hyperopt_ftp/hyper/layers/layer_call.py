"""A call of a layer as a function of tensors alone, which can be made again; what would make it another is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree

from ...dtensors import local
from ...hparams import concrete
from ..core.graph import stand_in
from ..core.replay import Replay, in_modes, modes_of
from ..core.second_order import twice_differentiable
from ..core.torch_private import by_place
from ..guards.graphs import loses_derivative
from ..guards.messages import LAYER, writes
from ..guards.operations import watched_operations

#: What holds no tensor of its own, or, as a module, those that a walk of the graph finds.
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, nn.Module, FunctionType, type)


def call_of(layer: Callable[..., Any], args: Any, kwargs: Any) -> tuple[LayerCall, list[Tensor]]:
    """``layer(*args, **kwargs)`` as a function of tensors; and these, among them those of a module."""
    owner = layer.__self__ if isinstance(layer, MethodType) else layer
    owner = owner if isinstance(owner, nn.Module) else None
    of_owner = {} if owner is None else {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
    leaves, spec = pytree.tree_flatten((of_owner, args, kwargs))
    _refuse_objects(leaves)
    given, tensors = _without(leaves, lambda x: isinstance(x, Tensor))
    return LayerCall(layer, owner, given, spec), tensors


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors where a graph of its own begins; in grad mode views, so that it goes on to what has made them."""
    if torch.is_grad_enabled():
        return [x.view_as(x) for x in tensors]
    return [stand_in(x) if x.requires_grad else x.detach() for x in tensors]


_OUT = object()


def _without(leaves: Sequence[Any], some: Callable[[Any], bool]) -> tuple[list[Any], list[Tensor]]:
    """Leaves with a mark in place of some tensors, and these."""
    return [_OUT if some(x) else x for x in leaves], [x for x in leaves if some(x)]


def _filled(leaves: Sequence[Any], spec: Any, tensors: Sequence[Tensor]) -> Any:
    rest = iter(tensors)
    return pytree.tree_unflatten([next(rest) if x is _OUT else x for x in leaves], spec)


class LayerCall:
    """A call as a function of its tensors, which are not held."""

    def __init__(self, layer: Callable[..., Any], owner: nn.Module | None, given: list[Any], spec: Any) -> None:
        self._layer, self._owner, self._given, self._spec = layer, owner, given, spec
        self._begin, self._modes = Replay(), [] if owner is None else modes_of(owner)
        self._result: Any = None
        self._prints: list[Tensor] = []  # of what the first run gave

    def first(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in what the layer returns that have a derivative, with their graph."""
        tensors = apart(tensors)
        with watched_operations(LAYER) as seen:
            try:
                leaves, spec = self._run(tensors)
            except RuntimeError as error:
                if "leaf Variable that requires grad" not in str(error):
                    raise
                raise writes(LAYER, "", None) from error
        if seen.has_hooks:
            raise RuntimeError(
                f"{LAYER.name} puts hooks on saved tensors itself, as torch.utils.checkpoint and "
                "gradient_checkpointing_enable() do, which saves nothing of a second derivative; leave them out, or "
                "take hft.remat there too"
            )
        _refuse_objects(self._given)  # what the layer has put into them
        left, found = _without(leaves, _differentiable)
        lost = loses_derivative(LAYER, found, tensors)
        if lost is not None:
            raise lost
        self._result, self._prints = (left, spec), _prints(found, self._begin)
        return found

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same as in the first run."""
        leaves, _ = self._begin.again(lambda: self._run(tensors))
        found = [x for x in leaves if _differentiable(x)]
        _refuse_others(self._prints, _prints(found, self._begin))
        return found

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What the layer returned, with other tensors in it; asked for once, since it is not kept."""
        (leaves, spec), self._result = self._result, None
        return _filled(leaves, spec, tensors)

    def _run(self, tensors: Sequence[Tensor]) -> tuple[list[Any], Any]:
        of_owner, args, kwargs = _filled(self._given, self._spec, tensors)
        owner = self._owner
        there = nullcontext() if owner is None else _reparametrize_module(owner, by_place(owner, of_owner))
        # Also the first time: it may take a derivative itself.
        with twice_differentiable(), torch.enable_grad(), in_modes(self._modes), there:
            return pytree.tree_flatten(self._layer(*args, **kwargs))


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _refuse_objects(leaves: Sequence[Any]) -> None:
    """Raise if an argument holds tensors, which could not be kept, or put in other places."""
    for x in leaves:
        if not isinstance(x, Tensor) and _holds_tensors(x, depth=3):
            raise TypeError(
                f"{LAYER.name} gets an object that holds tensors, a {type(x).__name__}, and may write into it: give "
                "tensors, in lists, tuples, dicts or classes that are registered with torch.utils._pytree; a cache of "
                "keys and values is switched off by use_cache=False"
            )


def _holds_tensors(x: Any, depth: int) -> bool:
    if x is None or isinstance(x, _PLAIN):
        return False
    inside: Iterator[Any] = iter(pytree.tree_leaves([*getattr(x, "__dict__", {}).values()]))
    return isinstance(x, Tensor) or (depth > 0 and any(_holds_tensors(y, depth - 1) for y in inside))


def _prints(found: Sequence[Tensor], replay: Replay) -> list[Tensor]:
    """Of each tensor of floats its norm, and its product with cosines, which tell entries and signs apart.

    On a CPU in float32 at least: there sums have one order.
    """
    rows = [local(torch.view_as_real(y.detach()) if y.is_complex() else y.detach()) for y in found if concrete(y)]
    rows = [y.float() if y.is_cpu and y.itemsize < 4 else y for y in rows if y.is_floating_point()]
    wide = [torch.promote_types(y.dtype, torch.float32) for y in rows]
    waves = [torch.arange(y.numel(), dtype=d, device=y.device).cos_() for y, d in zip(rows, wide, strict=True)]
    with replay.autocast(on=False):
        pairs = [(torch.linalg.vector_norm(y), y.flatten() @ w.to(y)) for y, w in zip(rows, waves, strict=True)]
    return [torch.stack(pair) for pair in pairs]


def _refuse_others(first: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    same = []
    for x, y in zip(first, again, strict=True):
        slack = torch.finfo(x.dtype).eps ** 0.75 * x.abs().sum()  # of norm and product
        same.append((torch.isclose(x, y, rtol=0.0, atol=0.0, equal_nan=True) | ((x - y).abs() <= slack)).all())
    if same and not bool(torch.stack([x.to(same[0].device) for x in same]).all()):  # read once for all
        raise RuntimeError(
            f"{LAYER.name} gives another result when it is computed again, so its derivative would be wrong. It must "
            "be the same function of its arguments each time: torch's default random generators are restored, but not "
            "a torch.Generator of its own, NumPy's or Python's, nor what is changed outside (a counter; train() or "
            "eval() of a module that it closes over). Draw such numbers beforehand and pass them as arguments"
        )
