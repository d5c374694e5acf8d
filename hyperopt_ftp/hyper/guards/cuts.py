"""Where a training loss cuts derivatives off: numbers that it reads of its params, and tensors that it detaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...hparams import is_wrapped
from ..core.memory import storage_of
from .operations import watched_operations

DATA: Any = Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
_IN_PROGRAMS_NONE = {Tensor.detach_, torch.detach_, DATA}  # torch.compile goes through these (2.13)


class Cuts:
    """It may read a number of its params for a log. It computes with numbers if after that it takes any, or a tensor
    that is neither its argument nor made by torch from tensors, in the same call; in a later call, if these are new.

    Attributes:
        has_read: whether it has read a number of params.
        detached: tensors that it has detached from params, and what it has computed of these, by id.
        ignored_by_programs: how it has taken something for constant that a program would differentiate.
        alive: results, for the time of the call: what has gone would leave its number to another storage.
    """

    def __init__(self, operations: watched_operations | None, there: Iterable[int], before: Cuts | None) -> None:
        """
        Args:
            operations: knows what the call has made.
            there: storages of its arguments.
            before: of an earlier call that has read a number.
        """
        self._operations, self._later = operations, before is not None
        self._numbers: set[Any] = set(before._numbers) if before else set()
        self._there = {*there, *(before._outside if before else ())}
        self.has_read: bool = self._later
        self.detached: set[int] = set()
        self.ignored_by_programs: set[str] = set()
        self.alive: list[Any] = []

    @property
    def _outside(self) -> set[int]:
        """Storages of what the loss has used and not made."""
        return self._there - self._operations.made if self._operations else self._there

    def takes_number(self, args: Any, kwargs: Any, read: bool, for_log: bool) -> bool:
        """Whether an operation computes with a number of params.

        ``read``: it makes a number of what depends on params; ``for_log``: which may be for a log alone.
        """
        self.has_read |= read and for_log
        found = not for_log and (read or self._computes(args, kwargs))
        self._there |= _storages((args, kwargs))
        return found

    def _computes(self, args: Any, kwargs: Any) -> bool:
        """Whether it takes a number that may be one that was read, or a tensor that may be made of it."""
        if not (self._operations or self.has_read):
            return False
        numbers = {x for x in map(_number, tree.leaves((args, kwargs))) if x is not None}
        new = numbers - self._numbers if self._later else numbers
        self._numbers |= numbers
        return self.has_read and bool(new or not _storages((args, kwargs)) <= self._there)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any, cut: Sequence[Tensor], lost: bool) -> None:
        """``cut``: what has been detached; ``lost``: of which a derivative in params is lost."""
        self._there |= _storages(result)
        self.alive.append(result)
        if cut and func in _IN_PROGRAMS_NONE:
            self.ignored_by_programs.add("data or detach_()")
        elif not (cut or torch.is_grad_enabled()) and any(x.requires_grad for x in tree.tensors((args, kwargs))):
            self.ignored_by_programs |= {"torch.no_grad()" for x in tree.tensors(result) if x.is_floating_point()}
        if lost or (self.detached and any(id(x) in self.detached for x in tree.leaves((args, kwargs)))):
            written = args[:1] if result is None else result  # by item assignment
            self.detached |= {id(x) for x in tree.tensors(written) if x.is_floating_point()}
        if func == DATA and self._operations is not None:
            self._operations.protected |= _storages(result)


def _number(x: Any) -> Any:
    """What a float, or a number or an array of NumPy, is known by. Integers are no functions with a derivative."""
    if isinstance(x, (float, complex)):
        return x
    return x.tobytes() if type(x).__module__ == "numpy" and hasattr(x, "tobytes") else None


def _storages(values: Any) -> set[int]:
    return {storage_of(x) for x in tree.tensors(values) if not is_wrapped(x)}
