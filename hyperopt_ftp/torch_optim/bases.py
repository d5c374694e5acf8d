"""What moves the weights of a drop-in optimizer; the first kind: an update of our own, one call with the projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..anchored.rule import Spec
from ..hparams import check_hparam
from ..kernels.layers import SGD, AdamW, Amp
from ..tree import working
from .backends import BACKENDS, Part, by_device_and_dtype
from .checks import check_flags

if TYPE_CHECKING:
    from .optimizer import DropIn


class Base(ABC):
    """What moves the weights of a drop-in optimizer.

    Attributes:
        strict: whether the flags of a group are meant for our backends.
        flagged: whether a group's ``foreach`` and ``fused`` are torch's, which choose a backend where it is not strict.
        options: entries of a group that are ours, with their defaults.
        specs: state that is made and read for it.
        whole: whether a checkpoint has all that a group uses of it or none.
    """

    strict: bool
    flagged: bool = True
    options: Mapping[str, Any] = MappingProxyType({})
    specs: tuple[Spec, ...] = ()
    whole: bool = False

    @abstractmethod
    def state_of(self, opt: DropIn, p: Tensor, constrained: bool) -> dict[str, Any]:
        """A parameter's state, into which that of the hold goes."""

    @abstractmethod
    def check_ready(self, opt: DropIn) -> None:
        """``RuntimeError`` where a step cannot begin."""

    @abstractmethod
    def step(self, opt: DropIn) -> None:
        """A step with what holds the weights. After an error nothing has changed, unless a given base has moved."""

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Which of its state a step of a group takes, in the order of ``Columns.moments``."""
        return ()

    def attach(self, opt: DropIn) -> None:
        """Take over the optimizer's groups and state as they are now, where they are shared."""

    def switch(self, opt: DropIn, mode: Literal["train", "eval"]) -> None:
        """To one of the two modes that a base may have."""

    def begin_group(self, group: dict[str, Any]) -> None:
        """Before the state of a group's parameters is made."""

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Put into a parameter's state what its step needs of the base's, once the hold's is there."""

    def check(self, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""

    def check_weights(self, opt: DropIn, group: dict[str, Any]) -> None:
        """Whether the options of a group can be had with its weights."""

    def state_dict(self, opt: DropIn, found: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint: ``found``, in the form that the base's own methods need."""
        return found

    def check_saved(self, saved: Mapping[str, Any]) -> None:
        """``ValueError`` where a checkpoint lacks what it needs."""

    def check_state(self, state: dict[str, Any]) -> None:
        """``ValueError`` where it cannot load a checkpoint's state."""

    def load(self, opt: DropIn, state: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Take over checked groups and state; returns those that the optimizer is to have."""
        return state

    def casts(self, key: str) -> bool:
        """Whether its own entry of a checkpoint takes the dtype of the weights; else it keeps its own."""
        return False


class Formula(NamedTuple):
    """An update that kernels have."""

    kernel: type[AdamW] | type[SGD]
    numbers: tuple[str, ...]  # group entries that it takes after lr, in its order; pairs one after the other
    flags: tuple[str, ...]  # of them and others, those that are bools
    specs: tuple[Spec, ...]  # beside the number of steps
    moments: Callable[[dict[str, Any]], tuple[str, ...]]  # those that a group uses
    whole: bool  # whether a checkpoint has all of them or none
    check: Callable[[dict[str, Any]], None] | None = None  # what else a group's options must be
    begin: Callable[[dict[str, Any], dict[str, Any]], None] | None = None  # state and group, before blank moments


class Own(Base):
    """An update of our own: a step is one call of the picked backend."""

    strict: bool = True

    def __init__(self, formula: Formula) -> None:
        self.formula: Formula = formula
        self.specs: tuple[Spec, ...] = (Spec("step", "count"), *formula.specs)
        self.whole: bool = formula.whole

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.formula.moments(group)

    def state_of(self, opt: DropIn, p: Tensor, constrained: bool) -> dict[str, Any]:
        return opt.state[p]

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        if self.formula.begin is not None:
            self.formula.begin(state, group)
        for key in self.moments(group):
            if state.get(key) is None:
                state[key] = torch.zeros_like(working(p.detach()))

    def check_ready(self, opt: DropIn) -> None:
        if hasattr(opt, "_accelerator_graph_capture_health_check"):  # capture needs capturable=True
            opt._accelerator_graph_capture_health_check()  # pyright: ignore
        else:
            opt._cuda_graph_capture_health_check()  # torch 2.10

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", *(name for name in self.formula.numbers if name not in self.formula.flags)):
            check_hparam(name, _zero_d(group[name]))
        check_flags(group, ("maximize", "capturable", "lean", *self.formula.flags), ("foreach", "fused"))
        if self.formula.check is not None:
            self.formula.check(group)
        if group["fused"] and group["foreach"]:
            raise RuntimeError("fused and foreach cannot both be True; choose one, or neither")
        if group["differentiable"] is not False:
            raise ValueError(
                f"differentiable must be False, got {group['differentiable']!r}: a step works in place; hft.ftp is the "
                "differentiable rule"
            )

    def check_weights(self, opt: DropIn, group: dict[str, Any]) -> None:
        if group["fused"]:
            opt._pick(group)
        narrow = [p.dtype for p in group["params"] if p.dtype != torch.float32]
        if group["lean"] and narrow:
            raise ValueError(
                f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got {narrow[0]}; for 16-bit "
                "weights the deviation is the master copy"
            )

    def step(self, opt: DropIn) -> None:
        scale, found_inf = getattr(opt, "grad_scale", None), getattr(opt, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return  # not even the state of a first step
        work: dict[str, list[Part]] = {}
        for group, execution, columns in opt._work():
            for part in by_device_and_dtype(columns):
                like = part.weights[0]
                amp = Amp(group["maximize"], _near(scale, like), _near(found_inf, like))
                work.setdefault(execution, []).append(Part(part, self._numbers(group, like), group, opt._holding, amp))
        for execution, parts in work.items():
            BACKENDS[execution].step_(parts)

    def _numbers(self, group: dict[str, Any], like: Tensor) -> AdamW | SGD:
        lr, rest = _zero_d(group["lr"]), [group[name] for name in self.formula.numbers]
        if isinstance(lr, Tensor):  # a number where that costs no sync, else on the weights' device
            on_device = torch.compiler.is_compiling() or group["capturable"] or lr.device.type != "cpu"
            lr = lr.to(like.device, non_blocking=True) if on_device else lr.item()
        flat = chain.from_iterable(x if isinstance(x, (tuple, list)) else [x] for x in rest)
        # Numbers beside lr are Python's; a tensor is read, which waits for its device.
        return self.formula.kernel._make([lr, *(x.item() if isinstance(x, Tensor) else x for x in flat)])


def _zero_d(value: Any) -> Any:
    """torch takes numbers, and pairs of them, in tensors of one element, whatever their shape."""
    if isinstance(value, (tuple, list)):
        found = map(_zero_d, value)
        return list(found) if isinstance(value, list) else tuple(found)
    return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value


def _near(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, non_blocking=True)
