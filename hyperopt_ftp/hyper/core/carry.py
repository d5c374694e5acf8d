"""What goes from step to step: the pieces of a rule that acts entry by entry, or else the trees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...hparams import as_numbers, is_scalar, is_wrapped
from ...optimizers.by_rule import EntryRule, entry_rule
from ...optimizers.leafwise import check_grads, for_each, no_steps
from ...types import HParams, Optimizer, Params, State, UpdateFn

#: Weights up to which they are carried as one vector: where there are more, an operation for each tensor costs little.
MOST = 2**20
_PLAIN = {Tensor, torch.nn.Parameter}
_KIND, _IS_NESTED = attrgetter("dtype", "device"), attrgetter("is_nested")
_LAYOUT, _STRIDED = attrgetter("layout"), {torch.strided}
_WIDE = (torch.float32, torch.float64)

#: Tensors that a gradient is taken in, and what else goes from step to step.
Point: TypeAlias = tuple[list[Tensor], Any]


class Trees:
    """Params and state as they are given."""

    apart = False

    def __init__(self, update: UpdateFn[Any], params: tree.Structure, state: State, hparams: HParams) -> None:
        self._update, self._hparams, self._state = update, hparams, state
        self._rebuild = params

    def begin(self) -> Point:
        return self._rebuild.leaves, self._state

    def params(self, at: list[Tensor]) -> Params:
        return self._rebuild(at)

    def update(self, at: list[Tensor], grads: Sequence[Tensor], state: Any) -> Point:
        params, state = self._update(self._rebuild(grads), state, self._rebuild(at), self._hparams)
        return self._rebuild.aligned(params, "params"), state

    def end(self, at: list[Tensor], state: Any) -> tuple[Params, State]:
        return self._rebuild(at), state


class Entrywise:
    """The weights and the state of a rule that acts entry by entry, which is called directly in each step.

    Attributes:
        apart: whether no weight of a step is made of another one of the same step.

    Where it pays, all weights are one vector, and so is each part of the state: they are joined once, and made trees
    again at the end. The loss gets views then, so autograd gives one gradient. Else each tensor is a piece of its own.
    """

    apart = True

    def __init__(self, rule: EntryRule, params: tree.Structure, state: State, hparams: HParams, steps: int) -> None:
        self._rule, self._state = rule, state
        self._leaves, self._rebuild = params.leaves, params
        count = len(self._leaves)
        # One step of a short rule costs less than to join the weights and to part them again.
        self._join = count >= rule.join_from and count * steps >= 2 * rule.join_from
        self._pieces = 1 if self._join else count
        self._shapes = [x.shape for x in self._leaves] if self._join else []
        self._sizes = [shape.numel() for shape in self._shapes]
        numbers = rule.flat(hparams)
        if rule.plain:
            numbers = as_numbers(numbers)
        if all(map(is_scalar, numbers)):
            self._h = [rule.by_name(numbers)] * self._pieces
        else:
            columns = [[x] * self._pieces if is_scalar(x) else self._for_each(x) for x in numbers]
            self._h = [*map(rule.by_name, zip(*columns, strict=True))]

    def begin(self) -> Point:
        at, rule, state = self._joined(self._leaves), self._rule, self._state
        if rule.counted and state is not None:
            step = state.step.item() if rule.plain and _is_known(state.step) else state.step
        else:
            step = 0 if rule.plain else no_steps()
        if state is None:
            # Of which a rule may ask for nothing: SGD without momentum.
            return at, (step, [defaultdict(partial(torch.zeros_like, w)) for w in at])
        columns = [self._joined(self._rebuild.aligned(getattr(state, name), "state")) for name in rule.keeps]
        rows = [{name: column[i] for name, column in zip(rule.keeps, columns, strict=True)} for i in range(len(at))]
        return at, (step, rows)

    def params(self, at: list[Tensor]) -> Params:
        if not self._join:
            return self._rebuild(at)
        parts = at[0].split_with_sizes(self._sizes)
        return self._rebuild([x if len(s) == 1 else x.view(s) for x, s in zip(parts, self._shapes, strict=True)])

    def update(self, at: list[Tensor], grads: Sequence[Tensor], state: Any) -> Point:
        rule, (step, rows) = self._rule.rule, state
        if {*map(_LAYOUT, grads)} != _STRIDED:
            check_grads(self._rebuild(grads), self._rebuild(at))  # which says so
        if self._rule.maximize:
            grads = [-g for g in grads]
        t = step = step + 1
        if self._rule.plain and isinstance(t, Tensor):  # of a transform
            t = t.double()  # a Python number to the power of an int64 tensor is a float32
        found = [rule(w, g, s, h, t) for w, g, s, h in zip(at, grads, rows, self._h, strict=True)]
        return [w for w, _ in found], (step, [s for _, s in found])

    def end(self, at: list[Tensor], state: Any) -> tuple[Params, State]:
        step, rows = state
        trees = {name: self._parted([row[name] for row in rows]) for name in self._rule.keeps}
        if self._rule.counted and isinstance(step, int):
            step = torch.full((), step, device="cpu")
        return self._parted(at), self._rule.filled(trees, step)

    def _joined(self, rows: list[Tensor]) -> list[Tensor]:
        return [torch.cat([x.reshape(-1) for x in rows])] if self._join else rows

    def _parted(self, rows: list[Tensor]) -> Any:
        """Copies, not views: results that share memory could not be saved, or changed in place, one by one."""
        if not self._join:
            return self._rebuild(rows)
        copies: Any = torch.split_with_sizes_copy  # whose stub has forgotten the result
        pairs = zip(copies(rows[0], self._sizes), self._shapes, strict=True)
        return self._rebuild([x.view(shape) for x, shape in pairs])

    def _for_each(self, value: Any) -> list[Tensor]:
        """An hparam with a number for each layer, as one for each piece."""
        rows = for_each(value, self._rebuild)
        if not self._join:
            return rows
        pairs = zip(rows, self._leaves, strict=True)
        return [torch.cat([x.to(device=w.device, dtype=w.dtype).expand(w.shape).reshape(-1) for x, w in pairs])]


def _is_known(step: Any) -> bool:
    plain = type(step) is Tensor and step.is_cpu and not is_wrapped(step)
    return plain and not step.is_floating_point() and not step.requires_grad


def carry_of(
    optimizer: Optimizer, params: Params, state: State | None, hparams: HParams, update: UpdateFn[Any], steps: int
) -> Trees | Entrywise:
    """
    Args:
        state: ``None`` at the beginning.
        update: the optimizer's, with its guards.
        steps: to come.
    """
    rule, whole = entry_rule(optimizer.update), tree.Structure(params)
    if rule is not None and rule.ours and _fits(rule, whole.leaves, state, optimizer.init):
        return Entrywise(rule, whole, state, hparams, steps)
    if state is None:
        state = optimizer.init(params, hparams)
    return Trees(update, whole, state, hparams)


def _fits(rule: EntryRule, leaves: list[Tensor], state: Any, init: Any) -> bool:
    kinds = set(map(_KIND, leaves))
    if len(kinds) != 1 or not _PLAIN.issuperset(map(type, leaves)) or any(map(_IS_NESTED, leaves)):
        return False
    if leaves[0].dtype not in _WIDE or sum(map(Tensor.numel, leaves)) > MOST:
        return False
    # Arithmetic of a 0-d weight and a float64 number is float64.
    if leaves[0].dtype != torch.float64 and len(leaves) < rule.join_from and 0 in [x.ndim for x in leaves]:
        return False
    if state is None:
        return init is rule.init
    # Once a gradient was None there is a count for each leaf.
    if type(state) is not rule.kind or (rule.counted and not isinstance(state.step, Tensor)):
        return False
    shapes = [x.shape for x in leaves]
    columns = [tree.leaves(getattr(state, name)) for name in rule.keeps]
    rows = [x for column in columns for x in column]
    plain = _PLAIN.issuperset(map(type, rows)) and kinds.issuperset(map(_KIND, rows))
    return plain and all([x.shape for x in column] == shapes for column in columns)
