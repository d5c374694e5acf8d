"""Back through an update tensor by tensor: what a rule makes of one is gone before the next one's turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...hparams import is_scalar
from ...optimizers.by_rule import entry_rule
from ...optimizers.leafwise import for_each
from ...types import Optimizer, Params, State
from ..core.carry import MOST
from ..core.leaves import OptionalTensors, added, floats
from ..core.vjp import pull_columns


def acts_by_tensor(optimizer: Optimizer, params: Params, state: State) -> bool:
    """Whether the update of each tensor is that of the tensor alone, and there are so many weights that it pays."""
    rule = entry_rule(optimizer.update)
    if rule is None or not rule.ours or type(state) is not rule.kind:
        return False
    one_count = not rule.counted or isinstance(state.step, Tensor)  # once a gradient was None each has its own
    return one_count and sum(x.numel() for x in floats(params)) > MOST


def back_by_tensor(
    optimizer: Optimizer, grads: Params, state: State, params: Params, hparams: dict[str, Any], knobs: list[Tensor],
    back_p: OptionalTensors, back_s: OptionalTensors,
) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, OptionalTensors]:  # fmt: skip
    """Adjoints of gradients, params, state and knobs, from those after the update, which are dropped on the way.

    Args:
        optimizer: one that :func:`acts_by_tensor`.
        grads, state, params: of a step.
        hparams: its hparams, of which the ``knobs`` are leaves.
        back_p, back_s: adjoints of the floats of params and state.
    """
    rule: Any = entry_rule(optimizer.update)
    ws, rebuild = tree.flatten(params)
    names, count = [name for name in rule.kind._fields if name in rule.keeps], len(ws)
    step = getattr(state, "step", None)
    gs, moments = rebuild.aligned(grads, "grads"), [rebuild.aligned(getattr(state, name), "state") for name in names]
    columns = [[x] * count if is_scalar(x) else for_each(x, rebuild) for x in rule.flat(hparams)]
    bars: list[OptionalTensors] = [[] for _ in range(2 + len(names))]
    bar_h: OptionalTensors = [None] * len(knobs)
    for i in range(count):
        places, numbers = range(i, count * len(names), count), [column[i] for column in columns]
        given, cotangents = [gs[i], ws[i], *(m[i] for m in moments)], [back_p[i], *(back_s[j] for j in places)]
        back_p[i] = None
        for j in places:
            back_s[j] = None
        wholes: OptionalTensors = [None] * len(bars)
        begin = 0
        for piece, of_piece in _pieces(given, cotangents, all(map(is_scalar, numbers))):
            g, w, *values = at = [tree.working(x.detach()).requires_grad_() for x in piece]
            before = rule.filled({name: [x] for name, x in zip(names, values, strict=True)}, step)
            with torch.enable_grad():
                new, after = optimizer.update([g], before, [w], rule.by_name(numbers))
            outputs = [*new, *(getattr(after, name)[0] for name in names)]
            found, more_h = pull_columns(outputs, of_piece, [at, knobs])
            for n, x in enumerate(found):
                wholes[n] = x if x is None or x.shape == ws[i].shape else _with(wholes[n], x, begin, ws[i].shape)
            begin += w.numel()
            bar_h = added(bar_h, more_h)
        for bar, whole in zip(bars, wholes, strict=True):
            bar.append(whole)
    return bars[0], bars[1], [x for bar in bars[2:] for x in bar], bar_h


def _with(whole: Tensor | None, piece: Tensor, begin: int, shape: torch.Size) -> Tensor:
    """A tensor with that piece in its place: pieces that are kept to be joined would take the memory twice."""
    whole = piece.new_empty(shape) if whole is None else whole
    whole.view(-1)[begin : begin + piece.numel()] = piece
    return whole


def _pieces(
    given: list[Tensor], cotangents: OptionalTensors, divisible: bool
) -> Iterator[tuple[list[Tensor], OptionalTensors]]:
    """Of a large tensor so many entries at once: the table of an embedding may be half of all weights."""
    if not divisible or given[0].numel() <= MOST:
        yield given, cotangents
        return
    rows = [[None] if x is None else x.reshape(-1).split(MOST) for x in (*given, *cotangents)]
    for k in range(len(rows[0])):
        piece = [row[0] if row[0] is None else row[k] for row in rows]
        yield [x for x in piece[: len(given)] if x is not None], piece[len(given) :]
