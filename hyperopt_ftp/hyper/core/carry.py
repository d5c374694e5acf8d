"""What goes from step to step: one vector of all weights where the rule acts entry by entry, else the trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...hparams import as_numbers, is_scalar, is_wrapped
from ...optimizers.by_rule import EntryRule, entry_rule
from ...optimizers.leafwise import for_each, no_steps
from ...types import HParams, Optimizer, Params, State, UpdateFn

#: Weights up to which they are carried as one vector: where there are more, an operation for each tensor costs little.
MOST = 2**20
_PLAIN = (Tensor, torch.nn.Parameter)
_WIDE = (torch.float32, torch.float64)

_PACKAGE = __name__.partition(".")[0] + "."

Guard: TypeAlias = Callable[[Any], Any]
#: Tensors that a gradient is taken in, and what else goes from step to step.
Point: TypeAlias = tuple[list[Tensor], Any]


class Trees:
    """Params and state as they are given."""

    def __init__(self, update: UpdateFn[Any], params: Params, state: State, hparams: HParams) -> None:
        self._update, self._hparams, self._state = update, hparams, state
        self._leaves, self._rebuild = tree.flatten(params)

    def begin(self) -> Point:
        return self._leaves, self._state

    def params(self, at: list[Tensor]) -> Params:
        return self._rebuild(at)

    def update(self, at: list[Tensor], grads: list[Tensor], state: Any) -> Point:
        params, state = self._update(self._rebuild(grads), state, self._rebuild(at), self._hparams)
        return self._rebuild.aligned(params, "params"), state

    def end(self, at: list[Tensor], state: Any) -> tuple[Params, State]:
        return self._rebuild(at), state


class Vector:
    """All weights as one vector, and one for each part of the state: the rule runs once a step.

    They are joined once, and made trees again at the end. The loss gets views, so autograd gives one gradient.
    """

    def __init__(self, rule: EntryRule, params: Params, state: State, hparams: HParams, guard: Guard) -> None:
        self._rule = rule
        self._update = self._by_rule if is_ours(rule) else guard(self._by_rule)
        leaves, self._rebuild = tree.flatten(params)
        self._leaves, self._state = leaves, state
        self._shapes = [x.shape for x in leaves]
        self._sizes = [shape.numel() for shape in self._shapes]
        numbers = rule.flat(hparams)
        if rule.plain:
            numbers = as_numbers(numbers)
        self._h = rule.by_name([x if is_scalar(x) else self._for_each(x, params) for x in numbers])

    def begin(self) -> Point:
        w, rule, state = self._joined(self._leaves), self._rule, self._state
        if state is None:
            rows = dict.fromkeys(rule.keeps, torch.zeros_like(w.detach()))
        else:
            rows = {name: self._joined(self._rebuild.aligned(getattr(state, name), "state")) for name in rule.keeps}
        step = state.step if rule.counted and state is not None else no_steps()
        if rule.plain and _is_known(step):
            step = step.item()
        return [w], (step, rows)

    def params(self, at: list[Tensor]) -> Params:
        if len(self._sizes) == 1:
            return self._rebuild(at)
        parts = at[0].split_with_sizes(self._sizes)
        return self._rebuild([x.view(shape) for x, shape in zip(parts, self._shapes, strict=True)])

    def update(self, at: list[Tensor], grads: list[Tensor], state: Any) -> Point:
        step, rows = state
        at, rows = self._update(grads, (step + 1, rows), at, self._h)
        return at, (step + 1, rows)

    def _by_rule(self, grads: list[Tensor], state: Any, at: list[Tensor], h: Any) -> Point:
        g = -grads[0] if self._rule.maximize else grads[0]
        w, rows = self._rule.rule(at[0], g, state[1], h, state[0])
        return [w], rows

    def end(self, at: list[Tensor], state: Any) -> tuple[Params, State]:
        step, rows = state
        trees = {name: self._parted(rows[name]) for name in self._rule.keeps}
        return self._parted(at[0]), self._rule.filled(trees, torch.tensor(step) if isinstance(step, int) else step)

    def _joined(self, rows: list[Tensor]) -> Tensor:
        # One that is also an hparam has a derivative in each place.
        return rows[0].view_as(rows[0]) if len(rows) == 1 else torch.cat([x.reshape(-1) for x in rows])

    def _parted(self, x: Tensor) -> Any:
        """Copies, not views: results that share memory could not be saved, or changed in place, one by one."""
        if len(self._sizes) == 1:
            return self._rebuild([x])
        copies: Any = torch.split_with_sizes_copy  # whose stub has forgotten the result
        pairs = zip(copies(x, self._sizes), self._shapes, strict=True)
        return self._rebuild([x.view(shape) for x, shape in pairs])

    def _for_each(self, value: Any, params: Params) -> Tensor:
        """An hparam with a number for each layer, as a vector; in the dtype of the weights, whose results it has."""
        rows = zip(for_each(value, params), self._leaves, strict=True)
        whole = [x.to(device=w.device, dtype=w.dtype).expand(w.shape).reshape(-1) for x, w in rows]
        return whole[0].view(self._shapes[0]) if len(whole) == 1 else torch.cat(whole)


def _is_known(step: Any) -> bool:
    return type(step) is Tensor and not is_wrapped(step) and step.is_cpu


def carry_of(
    optimizer: Optimizer, params: Params, state: State | None, hparams: HParams, guard: Guard
) -> Trees | Vector:
    """
    Args:
        state: ``None`` at the beginning.
        guard: put around an update that is not the package's own.
    """
    rule = entry_rule(optimizer.update)
    if rule is not None and _fits(rule, params, state):
        return Vector(rule, params, state, hparams, guard)
    if state is None:
        state = optimizer.init(params, hparams)
    update = optimizer.update if rule is not None and is_ours(rule) else guard(optimizer.update)
    return Trees(update, params, state, hparams)


def is_ours(rule: EntryRule) -> bool:
    """Whether a rule is of the package, whose rules are known to have right derivatives."""
    return str(rule.rule.__module__).startswith(_PACKAGE)


def _fits(rule: EntryRule, params: Params, state: Any) -> bool:
    leaves, count = tree.leaves(params), 0
    if not leaves:
        return False
    for x in leaves:
        if type(x) not in _PLAIN or x.dtype != leaves[0].dtype or x.device != leaves[0].device or x.is_nested:
            return False
        count += x.numel()
    if leaves[0].dtype not in _WIDE or count > MOST:
        return False
    if state is None:
        return True
    # Once a gradient was None there is a count for each leaf.
    if type(state) is not rule.kind or (rule.counted and not isinstance(state.step, Tensor)):
        return False
    shapes = [x.shape for x in leaves]
    columns = [tree.leaves(getattr(state, name)) for name in rule.keeps]
    own = [x for column in columns for x in column]
    like = leaves[0].dtype, leaves[0].device
    plain = all(type(x) in _PLAIN and (x.dtype, x.device) == like for x in own)
    return plain and all([x.shape for x in column] == shapes for column in columns)
