"""Moving weights by an update of our own: one call of a backend, with the projection."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...anchored.rule import Spec
from ...hparams import check_hparam
from ...kernels.layers import SGD, AdamW
from ...tree import working
from ..checks.arguments import check_flags, check_lean
from ..execution.hold import Hold
from .mover import Mover, Work


class Formula(NamedTuple):
    """An update that kernels have."""

    kernel: type[AdamW] | type[SGD]
    numbers: tuple[str, ...]  # group entries that it takes after lr, in its order; pairs one after the other
    flags: tuple[str, ...]  # of them and others, those that are bools
    specs: tuple[Spec, ...]  # beside the number of steps
    moments: Callable[[dict[str, Any]], tuple[str, ...]]  # those that a group uses
    whole: bool  # whether a checkpoint has all of them or none
    check: Callable[[dict[str, Any]], None] | None = None  # what else a group's options must be


class Own(Mover):
    """An update of our own: a step is one call of the picked backend."""

    own: bool = True

    def __init__(self, formula: Formula, hold: Hold) -> None:
        super().__init__(hold, (Spec("step", "count"), *formula.specs))
        self.formula: Formula = formula
        self.whole: bool = formula.whole

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.formula.moments(group)

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        for key in self.moments(group):
            if state.get(key) is None:
                state[key] = torch.zeros_like(working(p.detach()))

    def check_ready(self, opt: Optimizer) -> None:
        names = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # before torch 2.11
        next(filter(None, (getattr(opt, name, None) for name in names)))()  # capture needs capturable=True

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", *(name for name in self.formula.numbers if name not in self.formula.flags)):
            check_hparam(name, _zero_d(group[name]))
        check_flags(group, ("maximize", "capturable", "lean", *self.formula.flags), ("foreach", "fused"))
        if self.formula.check is not None:
            self.formula.check(group)
        if group["fused"] and group["foreach"]:
            raise RuntimeError("fused and foreach cannot both be True; choose one, or neither")
        if group["fused"]:
            self.pick(group)
        check_lean(group)

    def step(self, collect: Callable[[], Work]) -> None:
        for backend, parts in collect().items():
            backend.step_(parts)

    def numbers(self, group: dict[str, Any], like: Tensor) -> AdamW | SGD:
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
