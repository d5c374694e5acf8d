"""Back through an update tensor by tensor: what a rule makes of one is gone before the next one's turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...hparams import is_scalar
from ...optimizers.by_rule import entry_rule
from ...optimizers.leafwise import for_each
from ...types import Optimizer, Params, State
from ..core.carry import MOST, is_ours
from ..core.leaves import OptionalTensors, added, floats
from ..core.vjp import pull_columns


def acts_by_tensor(optimizer: Optimizer, params: Params, state: State) -> bool:
    """Whether the update of each tensor is that of the tensor alone, and there are so many weights that it pays."""
    rule = entry_rule(optimizer.update)
    if rule is None or not is_ours(rule) or type(state) is not rule.kind:
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
    gs, moments = rebuild.aligned(grads, "grads"), [rebuild.aligned(getattr(state, name), "state") for name in names]
    columns = [[x] * count if is_scalar(x) else for_each(x, params) for x in rule.flat(hparams)]
    bar_g: OptionalTensors = []
    bar_p: OptionalTensors = []
    bar_s: list[OptionalTensors] = [[] for _ in names]
    bar_h: OptionalTensors = [None] * len(knobs)
    for i in range(count):
        g, w, *own = [tree.working(x.detach()).requires_grad_() for x in (gs[i], ws[i], *(m[i] for m in moments))]
        before = rule.filled({name: [x] for name, x in zip(names, own, strict=True)}, getattr(state, "step", None))
        with torch.enable_grad():
            new, after = optimizer.update([g], before, [w], rule.by_name([column[i] for column in columns]))
        places = range(i, count * len(names), count)
        cotangents = [back_p[i], *(back_s[j] for j in places)]
        back_p[i] = None
        for j in places:
            back_s[j] = None
        outputs = [*new, *(getattr(after, name)[0] for name in names)]
        (more_g,), (more_p,), more_s, more_h = pull_columns(outputs, cotangents, [[g], [w], own, knobs])
        bar_g.append(more_g)
        bar_p.append(more_p)
        for column, x in zip(bar_s, more_s, strict=True):
            column.append(x)
        bar_h = added(bar_h, more_h)
    return bar_g, bar_p, [x for column in bar_s for x in column], bar_h
