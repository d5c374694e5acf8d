"""Ways to execute a step, and which of them a group takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..anchored.rule import Numbers, Rule
from ..hparams import as_tensor
from ..kernels import foreach, ops, sharded
from ..kernels.layers import SGD, AdamW, Amp, Ball, Layers
from . import single
from .store import Columns, choose, is_plain

__all__ = ["BACKENDS", "Backend", "Before", "Part", "by_device_and_dtype", "layers_of", "pick"]


class Part(NamedTuple):
    """Parameters of one group, device and dtype, and what their step needs."""

    columns: Columns
    base: AdamW | SGD | None  # numbers of the base; None where a torch optimizer moves the weights
    group: dict[str, Any]
    rule: Callable[[dict[str, Any]], Rule]  # of a group
    ball: Ball | None  # numbers of FTP's kernels, where they can execute the rule
    amp: Amp


class Before(NamedTuple):
    """What was done before the step of a base that is given."""

    grads: list[Tensor]  # what the base is to see instead of the raw gradients; empty: these
    token: Any  # for after_


class Backend(ABC):
    """One way to execute a step of parts of any devices and dtypes."""

    name: str  #: what ``opt.execution`` shows

    @abstractmethod
    def why_not(self, params: Sequence[Tensor], asked: bool) -> str | None:
        """Why it does not step these parameters, ``None`` where it does; ``asked``: by ``fused=True``."""

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

    def why_not(self, params: Sequence[Tensor], asked: bool) -> str | None:
        return None

    def step_(self, parts: list[Part]) -> None:
        for part in parts:
            assert part.base is not None
            single.step_(part.columns, part.base, *_rule_and_numbers(part), part.amp)

    def before_(self, parts: list[Part]) -> list[Before]:
        return [Before(*single.before(part.columns, *_rule_and_numbers(part), part.amp)) for part in parts]

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        for part, (_, kept) in zip(parts, before, strict=True):
            single.after_(part.columns, *_rule_and_numbers(part), kept)


class Kernel(Backend):
    """FTP's kernels, part by part: ``kernels.foreach``, or a fused one."""

    def __init__(self, name: str, functions: Any) -> None:
        self.name: str = name
        self._functions: Any = functions

    def why_not(self, params: Sequence[Tensor], asked: bool) -> str | None:
        if self.name in ops.FUSED:
            return ops.why_not(params, asked)
        return None if all(map(is_plain, params)) else "a parameter is a tensor subclass"

    def step_(self, parts: list[Part]) -> None:
        for part in parts:
            self._functions.step_(layers_of(part.columns), part.base, part.ball, part.amp)

    def before_(self, parts: list[Part]) -> list[Before]:
        return [Before([], self._radii(part)) for part in parts]

    def _radii(self, part: Part) -> Tensor:
        fixed = _fixed_radii(part)
        return self._functions.radii_(layers_of(part.columns), part.ball, part.amp) if fixed is None else fixed

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        for part, (_, packed) in zip(parts, before, strict=True):
            self._functions.project_(layers_of(part.columns), packed, part.ball)


class Sharded(Backend):
    """The same for DTensors, all parts at once: two collectives a step."""

    name: str = "sharded"

    def why_not(self, params: Sequence[Tensor], asked: bool) -> str | None:
        return next(filter(None, map(sharded.why_not, params)), None)

    def step_(self, parts: list[Part]) -> None:
        sharded.step_([_shards(part) for part in parts])

    def before_(self, parts: list[Part]) -> list[Before]:
        fixed = [_fixed_radii(part) for part in parts]
        learned = [_shards(part) for part, radii in zip(parts, fixed, strict=True) if radii is None]
        packed = iter(sharded.radii_(learned) if learned else [])
        return [Before([], next(packed) if radii is None else radii) for radii in fixed]

    def after_(self, parts: list[Part], before: list[Before]) -> None:
        sharded.project_([_shards(part) for part in parts], [packed for _, packed in before])


#: By the name that ``opt.execution`` shows.
BACKENDS: dict[str, Backend] = {
    "single": Single(),
    "foreach": Kernel("foreach", foreach),
    "sharded": Sharded(),
    **{name: Kernel(name, fused) for name, fused in ops.FUSED.items()},
}


def pick(group: dict[str, Any], strict: bool) -> Backend:
    """The backend of a group whose rule has kernels: what its flags ask for, else the best that needs no asking.

    Args:
        group: with its parameters and flags.
        strict: the flags are the optimizer's own. Those of a base that is given ask for the base's kernels, not ours.

    Raises:
        RuntimeError: where ``strict``, for ``fused=True`` that cannot run.
    """
    params, fused, multi = group["params"], group.get("fused"), group.get("foreach")
    if params and (fused or (fused is None and multi is None)):
        why = ops.why_not(params, asked=strict and bool(fused))
        if why is None:
            return BACKENDS[ops.BEST[params[0].device.type][0]]
        if fused and strict:
            raise RuntimeError(f"fused=True cannot run: {why}; fused=None takes the best there is")
    if multi is False:
        return BACKENDS["single"]
    if any(map(sharded.is_dtensor, params)):
        return BACKENDS["single" if BACKENDS["sharded"].why_not(params, False) else "sharded"]
    if multi is None and BACKENDS["foreach"].why_not(params, False):
        return BACKENDS["single"]
    return BACKENDS["foreach"]


def by_device_and_dtype(columns: Columns) -> list[Columns]:
    """Parameters of one device and dtype each, of weights and of gradients: what a kernel takes."""
    found: dict[Any, list[int]] = {}
    for i, (w, g) in enumerate(zip(columns.weights, columns.grads, strict=True)):
        found.setdefault((w.device, w.dtype, g.dtype), []).append(i)
    return [columns] if len(found) == 1 else [choose(columns, which) for which in found.values()]


def layers_of(columns: Columns) -> Layers:
    """As kernels take it: the state's columns stand in ``Layers`` in the order of FTP's specs."""
    return Layers._make([*columns[:4], *columns.state, columns.moments])


def _shards(part: Part) -> sharded.Part:
    assert part.ball is not None
    return sharded.Part(layers_of(part.columns), part.base, part.ball, part.amp)


def _fixed_radii(part: Part) -> Tensor | None:
    """Those of a ball whose radius is not learned."""
    if part.ball is None or part.ball.fixed is None:
        return None
    return torch.full_like(torch.stack(layers_of(part.columns).radii), part.ball.fixed)


def _rule_and_numbers(part: Part) -> tuple[Rule, Numbers]:
    rule = part.rule(part.group)
    return rule, {**rule.hparams, **{name: as_tensor(part.group[name]).reshape(()) for name in rule.reads}}
