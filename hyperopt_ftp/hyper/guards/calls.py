"""What a loss or an update does with its tensors in Python: reads numbers, writes through NumPy, makes leaves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ... import tree
from ...calls import warn_caller
from ..core.graph import made_from
from ..core.memory import storage_of
from ..core.torch_private import differentiated, differentiated_outside, top_level, under_transform
from .cuts import DATA, Cuts
from .messages import Subject, reads_number, writes
from .operations import refuse_numbers, watched_operations

#: Functions that read a number from their tensor; those below, from the tensors in their arguments.
_OF_ITSELF = {getattr(Tensor, name) for name in ("item", "tolist", "__float__", "__int__", "__index__", "__complex__")}
_SET_DATA = Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]
_OF_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.linspace, torch.logspace, Tensor.new_tensor}
_DETACHES = {Tensor.detach, torch.detach, Tensor.detach_, torch.detach_, DATA}
_TO_NUMPY = {Tensor.numpy, Tensor.__array__}
_LETS_REQUIRE_GRAD = {Tensor.requires_grad_, Tensor.requires_grad.__set__}  # pyright: ignore

#: Arguments of torch.add and its kin that are numbers: a tensor in their place is read.
_NUMBERS = frozenset(("alpha", "beta"))
_READS = frozenset((*_OF_ITSELF, *_OF_VALUES, DATA))
#: What may take a number of a tensor: for a branch, or a text.
_OF_FLAGS = frozenset((Tensor.__bool__, Tensor.is_nonzero, Tensor.__format__, Tensor.__repr__))


class watched_calls(TorchFunctionMode):  # a context manager
    """Raise if the code inside reads a number that is made of knobs alone; warn if it computes with one of params.

    Of a loss its ``cuts`` tell whether it does; an update is warned of the read. Under a transform knobs and
    params cannot be told apart, so both warn. What the code inside captures is a knob, too.
    :class:`~.operations.watched_operations` finds reads of a knob itself.
    """

    def __init__(
        self, who: Subject, knobs: Sequence[Tensor] = (), known: Sequence[Tensor] = (),
        operations: watched_operations | None = None, cuts: Cuts | None = None,
        ignored: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            known: what a derivative may be taken in, the knobs among it.
            operations: knows what the code inside has made.
            cuts: of a loss.
            ignored: tensors whose numbers anybody may take.
        """
        super().__init__()
        self._who, self._given, self._operations = who, [*known, *ignored], operations
        self._others = {id(x) for x in known} - {id(x) for x in knobs}
        self._cuts, self._ignored = cuts, {id(x) for x in ignored}
        self.warned: bool = False
        #: Tensors that the code inside lets require grad, as a gradient penalty does.
        self.leaves: list[Tensor] = []
        self._arrays: list[tuple[Any, bytes, Tensor]] = []  # of NumPy, in memory that the code inside has not made

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._cuts is not None:
            self._cuts.alive.clear()
        for array, before, x in self._arrays if error[0] is None else ():
            if array.tobytes() != before:
                self._refuse(writes(self._who, " (through NumPy)", x))

    def _refuse(self, error: RuntimeError) -> None:
        if self._operations is None:
            raise error
        self._operations.refuse(error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, cuts = kwargs or {}, self._cuts
        if func == Tensor.register_hook and self._operations is not None and cuts is not None:
            args, kwargs = (args[0], partial(_unchanged, kwargs.get("hook") or args[1])), {}
        if func == _SET_DATA and self._who.reads_data:
            raise writes(self._who, " (data = ...)", args[0])
        given = taken(func, args, kwargs, self._who)
        read = bool(given) and self._reads(given)
        if read if cuts is None else cuts.takes_number(args, kwargs, read, func in _OF_ITSELF):
            self._warn()
        lets = func in _LETS_REQUIRE_GRAD and not args[0].requires_grad
        cut = [x for x in args[:1] if func in _DETACHES and x.requires_grad]  # no longer, after detach_()
        made_of = made_from(cut, self._given)
        result = func(*args, **kwargs)
        if cuts is not None:
            # Without grad mode a node, such as that of a remat, takes its own tensors apart.
            lost = torch.is_grad_enabled() and any(id(x) in self._others for x in made_of)
            cuts.note(func, args, kwargs, result, cut, lost)
        if lets:
            self.leaves.append(args[0])
        elif kwargs.get("requires_grad") and isinstance(result, Tensor):
            self.leaves.append(result)
        elif func in _TO_NUMPY and self._operations and storage_of(args[0]) not in self._operations.made:
            self._arrays.append((result, result.tobytes(), args[0]))
        return result

    def _reads(self, given: Sequence[Any]) -> bool:
        transform, found = under_transform(), False
        for x in tree.leaves(given):
            if not isinstance(x, Tensor) or not (differentiated(x) if transform else x.requires_grad):
                continue
            made_of = set() if transform else {id(y) for y in made_from([x], self._given)}
            made_of -= {id(y) for y in self.leaves} | self._ignored
            if made_of and not made_of & self._others:
                self._refuse(reads_number(self._who))
                continue
            found |= transform or bool(made_of)
        return found

    def _warn(self) -> None:
        if not self.warned:
            self.warned = True
            warn_caller(
                f"{self._who.name} makes a number of a tensor that depends on what a derivative is taken in "
                "(item(), float(), tolist(), torch.tensor, data), and computes with numbers: what is computed from "
                "that one has no derivative there. Use the tensor; for a log, or where it is to count as a constant, "
                "take x.detach().item()"
            )


class read_knobs(TorchFunctionMode):  # a context manager
    """Raise if the code inside reads a number that is made of knobs alone: the cheap look at a later call."""

    def __init__(self, who: Subject, knobs: Sequence[Tensor], given: Any) -> None:
        """``given``: the other arguments, a tree."""
        super().__init__()
        self._who, self._knobs, self._given = who, knobs, given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            for x in tree.leaves(taken(func, args, kwargs or {}, self._who)):
                if isinstance(x, Tensor) and x.requires_grad:
                    self._judge(x)
        return func(*args, **(kwargs or {}))

    def _judge(self, x: Tensor) -> None:
        others = [y for y in tree.leaves(self._given) if isinstance(y, Tensor) and y.requires_grad]
        made_of = {id(y) for y in made_from([x], [*self._knobs, *others])}
        if made_of and made_of <= {id(y) for y in self._knobs}:
            raise reads_number(self._who)


class read_outside(TorchFunctionMode):  # a context manager
    """Under a transform, where graphs cannot be walked: raise if the code inside reads a number that transforms outside
    differentiate, and no inner one: of an hparam, of the batch, or of what it captures."""

    def __init__(self, who: Subject) -> None:
        super().__init__()
        self._who, self._level = who, top_level()
        self._cuts: dict[int, Tensor] = {}  # made under no_grad, as a log is, which does not end tangents

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS and any(map(self._asked, tree.leaves(taken(func, args, kwargs, self._who)))):
            raise reads_number(self._who)
        numbers = (x for x in tree.tensors((args, kwargs)) if not x.ndim)
        refuses = func not in _OF_FLAGS and any(map(self._asked, numbers))
        with refuse_numbers(self._who) if refuses else nullcontext():
            result = func(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._cuts |= {id(x): x for x in tree.tensors(result)}
        return result

    def _asked(self, x: Any) -> bool:
        tangents = torch.is_grad_enabled() and id(x) not in self._cuts
        return isinstance(x, Tensor) and differentiated_outside(x, self._level, tangents)


def taken(func: Any, args: Any, kwargs: Any, who: Subject) -> list[Any]:
    """Arguments whose values come out without their graph."""
    if func in _OF_ITSELF or (func == DATA and who.reads_data):
        return args[:1]
    if func not in _OF_VALUES:
        return [kwargs[name] for name in _NUMBERS if name in kwargs] if kwargs else []
    given = [*(args[1:] if func is Tensor.new_tensor else args), *kwargs.values()]
    if func in (torch.as_tensor, torch.asarray):  # of a tensor they are it, with its graph
        given = [x for x in given if not isinstance(x, Tensor)]
    return given


def _unchanged(hook: Any, grad: Tensor) -> None:
    new = hook(grad)
    if new is not None and new is not grad:
        raise RuntimeError(
            "train_loss has a hook that changes a gradient (register_hook): derivatives through training would pass it "
            "once more, and be wrong. Change the gradient in the optimizer instead: hft.clipped, or your own update"
        )
