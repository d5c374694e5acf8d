"""Ways to execute a step, and which of them a group takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...anchored.rule import Numbers, Rule
from ...dtensors import is_dtensor
from ...hparams import as_tensor
from ...kernels import foreach, ops, sharded
from ...kernels.layers import SGD, AdamW, Amp, Layers
from . import many, single
from .hold import Hold
from .store import Columns, choose, is_plain


class Part(NamedTuple):
    """Parameters of one group, device and dtype, and what their step needs."""

    columns: Columns
    base: AdamW | SGD | None  # numbers of the base; None where a torch optimizer moves the weights
    group: dict[str, Any]
    hold: Hold
    amp: Amp


#: What was done before a given base's step: gradients that it is to see (empty: the raw ones), and what is known after.
Before = tuple[list[Tensor], Any]


class Backend(ABC):
    """One way to execute a step of parts of any devices and dtypes."""

    name: str  #: what ``opt.execution`` shows

    @abstractmethod
    def step_(self, parts: list[Part]) -> None:
        """A whole step, the base's too."""

    @abstractmethod
    def before_(self, parts: list[Part]) -> list[Before]:
        """What the rule does before the step of a base that is given. FTP: the new radii, not yet clipped."""

    @abstractmethod
    def after_(self, parts: list[Part], before: list[Before]) -> None:
        """What it does after that. FTP: the projection."""


class Single(Backend):
    """The pure functions, one parameter at a time: any rule, any tensors."""

    name: str = "single"

    def step_(self, parts: list[Part]) -> None:
        for part in parts:
            assert part.base is not None
            single.step_(part.columns, part.base, *_rule_and_numbers(part), part.amp)

    def before_(self, parts: list[Part]) -> list[Before]:
        return [single.before(part.columns, *_rule_and_numbers(part), part.amp) for part in parts]

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        for part, (_, kept) in zip(parts, before, strict=True):
            single.after_(part.columns, *_rule_and_numbers(part), kept)


class Kernel(Backend):
    """FTP's kernels, part by part: ``kernels.foreach``, or a fused one."""

    def __init__(self, name: str, functions: Any) -> None:
        self.name: str = name
        self._functions: Any = functions

    def step_(self, parts: list[Part]) -> None:
        for layers, base, ball, amp in map(_for_kernels, parts):
            self._functions.step_(layers, base, ball, amp)

    def before_(self, parts: list[Part]) -> list[Before]:
        radii = self._functions.radii_
        return _radii(parts, lambda calls: [radii(layers, ball, amp) for layers, _, ball, amp in calls])

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        for (layers, _, ball, _), (_, packed) in zip(map(_for_kernels, parts), before, strict=True):
            self._functions.project_(layers, packed, ball)


class OnMany(Backend):
    """The execution on many tensors that the rule of a hold brings along."""

    name: str = "pieces"

    def step_(self, parts: list[Part]) -> None:
        raise NotImplementedError("such a rule goes around a base that is given")

    def before_(self, parts: list[Part]) -> list[Before]:
        return [many.before(part.columns, *_many_and_numbers(part), part.amp) for part in parts]

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        for part, (_, known) in zip(parts, before, strict=True):
            many.after_(part.columns, *_many_and_numbers(part), known)


class Sharded(Backend):
    """The same for DTensors, all parts at once: two collectives a step."""

    name: str = "sharded"

    def step_(self, parts: list[Part]) -> None:
        sharded.step_(list(map(_for_kernels, parts)))

    def before_(self, parts: list[Part]) -> list[Before]:
        return _radii(parts, sharded.radii_)

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        sharded.project_(list(map(_for_kernels, parts)), [packed for _, packed in before])


SINGLE, FOREACH, MANY, SHARDED = Single(), Kernel("foreach", foreach), OnMany(), Sharded()
FUSED: dict[str, Kernel] = {name: Kernel(name, functions) for name, functions in ops.FUSED.items()}


def pick(group: dict[str, Any], strict: bool) -> Backend:
    """The backend of a group whose rule has kernels: as its flags ask, else the best default.

    Args:
        group: with its parameters and flags.
        strict: the flags are the optimizer's own. Those of a given base ask for the base's kernels, not ours.

    Raises:
        RuntimeError: with ``strict``, for ``fused=True`` that cannot run.
    """
    params, fused, multi = group["params"], group.get("fused"), group.get("foreach")
    if params and (fused or (fused is None and multi is None)):
        why = ops.why_not(params, asked=strict and bool(fused))
        if why is None:
            return FUSED[ops.BEST[params[0].device.type][0]]
        if fused and strict and not all(p.is_meta and p.grad is None for p in params):  # which get a device later
            raise RuntimeError(f"fused=True cannot run: {why}; fused=None takes the best there is")
    if multi is False:
        return SINGLE
    if any(map(is_dtensor, params)):
        return SHARDED if all(map(sharded.can_step, params)) else SINGLE
    if multi is None and not all(map(is_plain, params)):
        return SINGLE
    return FOREACH


def pick_many(group: dict[str, Any]) -> Backend:
    """The backend of a group whose rule has an execution on many tensors.

    It has never run on a GPU, so there it needs the base's ``foreach=True``.
    """
    params, multi = group["params"], group.get("foreach")
    wanted = all(p.device.type == "cpu" for p in params) if multi is None else multi
    return MANY if wanted and many.can_step(params) else SINGLE


def by_device_and_dtype(columns: Columns) -> list[Columns]:
    """Parameters of one device and dtype each, of weights and of gradients: what a kernel takes."""
    found: dict[Any, list[int]] = {}
    for i, (w, g) in enumerate(zip(columns.weights, columns.grads, strict=True)):
        found.setdefault((w.device, w.dtype, g.dtype), []).append(i)
    return [columns] if len(found) == 1 else [choose(columns, which) for which in found.values()]


def _for_kernels(part: Part) -> sharded.Part:
    """The state's columns stand in ``Layers`` in the order of FTP's specs."""
    columns, hold = part.columns, part.hold
    assert hold.ball is not None
    layers = Layers._make([*columns[:4], *columns.state, columns.moments])
    return layers, part.base, hold.ball(part.group), part.amp


def _radii(parts: list[Part], learned: Callable[[list[sharded.Part]], list[Tensor]]) -> list[Before]:
    """The radii of each part, by ``learned`` or as its group fixes them: so with all parts, which have one hold."""
    calls = list(map(_for_kernels, parts))
    if calls[0][2].fixed is None:
        return [([], radii) for radii in learned(calls)]
    return [([], torch.full_like(torch.stack(layers.radii), float(ball.fixed or 0))) for layers, _, ball, _ in calls]


def _many_and_numbers(part: Part) -> tuple[many.Many, Rule, Numbers]:
    assert part.hold.many is not None
    return part.hold.many(part.group), *_rule_and_numbers(part)


def _rule_and_numbers(part: Part) -> tuple[Rule, Numbers]:
    rule = part.hold.rule(part.group)
    return rule, {**rule.hparams, **{name: as_tensor(part.group[name]).reshape(()) for name in rule.reads}}
