"""Python numbers that a loss or an update reads from tensors: no derivative goes through them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ... import tree
from ...calls import callers_level
from ..core.graph import made_from
from ..core.transforms import differentiated, under_transform
from .subjects import Subject, reads_number, writes

#: Functions that read a number from their tensor; those below, from the tensors in their arguments.
_OF_ITSELF = {getattr(Tensor, name) for name in ("item", "tolist", "__float__", "__int__", "__index__", "__complex__")}
_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]
_OF_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.linspace, torch.logspace, Tensor.new_tensor}


#: Arguments of torch.add and its kin that are numbers: a tensor in their place is read.
_NUMBERS = ("alpha", "beta")


class refuse_scalar_reads(TorchFunctionMode):  # a context manager
    """Raise if the code inside reads a number that is computed from knobs alone; warn if params are in it too.

    The latter may be a log, which is harmless. :class:`~.writes.refuse_writes` finds reads of a knob itself. Under a
    transform the two cannot be told apart, so both warn.
    """

    def __init__(self, who: Subject, knobs: Sequence[Tensor], known: Sequence[Tensor]) -> None:
        super().__init__()
        self._who = who
        self._given = known
        self._knobs, self._known = {id(x) for x in knobs}, {id(x) for x in known}
        self.warned: bool = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs:
            self._look([kwargs[name] for name in _NUMBERS if name in kwargs])
        if func == _SET_DATA and self._who.reads_data:
            raise writes(self._who, " (data = ...)", args[0])
        if func in _OF_ITSELF or (func == _DATA and self._who.reads_data):
            self._look(args[:1])
        elif func in _OF_VALUES:
            given = [*(args[1:] if func is Tensor.new_tensor else args), *kwargs.values()]
            if func in (torch.as_tensor, torch.asarray):  # of a tensor they are it, with its graph
                given = [x for x in given if not isinstance(x, Tensor)]
            self._look(given)
        return func(*args, **kwargs)

    def _look(self, given: Any) -> None:
        transform = under_transform()
        for x in tree.leaves(given):
            if not isinstance(x, Tensor) or not (differentiated(x) if transform else x.requires_grad):
                continue
            if not transform:
                made_of = {id(y) for y in made_from(x, self._given)}
                if not made_of & self._known:  # of what the code inside lets require grad itself
                    continue
                if made_of <= self._knobs:
                    raise reads_number(self._who)
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"{self._who.name} makes a number of a tensor that depends on what a derivative is taken in "
                    "(item(), float(), tolist(), torch.tensor, data): what is computed from that number has no "
                    "derivative there. Use the tensor; for a log, or where it is to count as a constant, take "
                    "x.detach().item()",
                    UserWarning,
                    stacklevel=callers_level(),
                )
