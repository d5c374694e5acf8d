"""What a loss or an update does, operation by operation: writes in place, reads of an hparam's number, collectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...dtensors import is_dtensor
from ..core.memory import bytes_of, storage_of
from ..core.torch_private import DispatchMode, saved_tensor_hooks
from .messages import Subject, reads_number, writes


class watched_operations(DispatchMode):  # a context manager
    """Raise if the code inside reads the number of a knob, or writes in place into a tensor that it has not made."""

    def __init__(
        self,
        who: Subject,
        knobs: Sequence[Tensor] = (),
        may_write: bool = False,
        collectives: bool = False,
        given: Sequence[Tensor] = (),
        waits: bool = False,
    ) -> None:
        """``may_write``: a write that torch counts is only noted, unless it is into what was ``given``; ``waits``: the
        first error is kept for who looks, not raised."""
        super().__init__()
        self._who, self._collectives, self._may_write, self._waits = who, collectives, may_write, waits
        self.error: RuntimeError | None = None
        self._knobs = {id(x) for x in knobs}
        #: Storages that the code inside has made; one that is gone gives its id to a later one, made here as well.
        self.made: set[int] = set()
        #: Storages that it may not write into: of arguments, and what it got by ``data``, which torch does not count.
        self.protected: set[int] = {storage_of(x) for x in given}
        #: Why it must not run twice.
        self.written: RuntimeError | None = None
        #: Whether random numbers are drawn.
        self.draws: bool = False
        #: Whether saved tensors have hooks somewhere, as activation checkpointing gives them.
        self.has_hooks: bool = False
        self._outer_hooks = saved_tensor_hooks()  # are not of the code inside
        #: Bytes of all tensors that the code inside has made.
        self.bytes_made: int = 0

    def refuse(self, error: RuntimeError | str) -> None:
        error = RuntimeError(error) if isinstance(error, str) else error
        self.error = self.error or error
        if not self._waits:
            raise error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.draws = self.draws or torch.Tag.nondeterministic_seeded in func.tags
        self.has_hooks = self.has_hooks or _other_hooks(saved_tensor_hooks(), self._outer_hooks)
        if func is torch.ops.aten._local_scalar_dense.default and id(args[0]) in self._knobs:
            self.refuse(reads_number(self._who))
        if func.namespace == "c10d" and not self._collectives:
            self.refuse(
                f"{self._who.name} calls a collective ({func}), which has no derivative. Give "
                "hft.data_parallel(loss) itself as the loss, with what is added to it inside: "
                "data_parallel(lambda p, b: loss(p, b) + l2(p))"
            )
        given = [*tensors_in(args), *tensors_in(kwargs)]
        if any(map(is_dtensor, given)) and not self._collectives:
            self.refuse(
                f"{self._who.name} computes with DTensors ({func}), of which torch 2.13 has some derivatives wrong "
                "without an error (of mse_loss, for instance); it gets whole params: compute with plain tensors"
            )
        for target in _written(func, args, kwargs):
            storage = storage_of(target)
            if storage not in self.made:
                self.written = writes(self._who, f" ({func})", target)
                if not self._may_write or storage in self.protected:
                    self.refuse(self.written)
        if func._schema.name == "aten::_weight_norm_interface":
            self.refuse(
                "train_loss uses torch._weight_norm (torch.nn.utils.parametrizations.weight_norm), whose second "
                "derivative is wrong in torch itself; write it out: g * v / v.norm(dim=..., keepdim=True)"
            )
        if func._schema.name == "aten::embedding" and _by_name(func, args, kwargs).get("scale_grad_by_freq"):
            self.refuse(
                "train_loss uses an embedding with scale_grad_by_freq=True, whose second derivative is wrong in torch "
                "itself, since it leaves out the scale; set scale_grad_by_freq=False"
            )
        if func._schema.name in ("aten::lift_fresh", "aten::lift"):  # torch.tensor(...): just made from numbers
            self.made.update(storage_of(x) for x in tensors_in(args))
        result = func(*args, **kwargs)
        there = {storage_of(x) for x in given}  # of which a view, or an alias, is not made here
        new = {place: x for x in tensors_in(result) if (place := storage_of(x)) not in there}
        self.made |= new.keys()
        self.bytes_made += bytes_of([*new.values()])
        return result


class refuse_numbers(DispatchMode):  # a context manager
    """Raise if the code inside takes the number of a tensor of floats, also where an operation wants a number."""

    def __init__(self, who: Subject) -> None:
        super().__init__()
        self._who = who

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            raise reads_number(self._who)
        return func(*args, **(kwargs or {}))


def _other_hooks(now: Any, before: Any) -> bool:
    """Of each pair of functions the first; torch makes the pair anew."""
    return now is not None and (before is None or now[0] is not before[0])


class refuse_other_weights(DispatchMode):  # a context manager
    """Raise if activation checkpointing recomputes with other weights in the backward pass than in the forward pass.

    ``functional_call`` puts params into a module for the time of the call. A checkpoint inside the module is recomputed
    after that, with the module's own weights.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._known = {id(x) for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in (*tensors_in(args), *tensors_in(kwargs)):
            if isinstance(x, torch.nn.Parameter) and x.requires_grad and id(x) not in self._known:
                raise RuntimeError(
                    "train_loss checkpoints activations inside a module that functional_call has given other params: "
                    f"its backward pass would use the module's own (one of shape {tuple(x.shape)}). Take "
                    "hft.remat_layers(net, pattern) in its place, which saves memory of second derivatives too; or put "
                    "functional_call inside the checkpoint: checkpoint(lambda p, x: functional_call(block, p, (x,)), "
                    "params, x)"
                )
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    name = func._schema.name
    if "batch_norm" in name and "backward" not in name:  # its schema does not tell
        given = _by_name(func, args, kwargs)
        if given.get("training", given.get("train", "update" in name)):
            yield from (given[x] for x in ("running_mean", "running_var") if isinstance(given.get(x), Tensor))
        return
    if not func._schema.is_mutable:
        return
    given = _by_name(func, args, kwargs)
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(given.get(argument.name))


def _by_name(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    nested = isinstance(value, (tuple, list, dict))
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)] if nested else []
