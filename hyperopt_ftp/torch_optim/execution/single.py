"""The pure functions as an execution of any rule: one parameter at a time, written back in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...anchored.rule import Numbers, Rule, RuleState
from ...dtensors import whole
from ...hparams import as_tensor
from ...kernels import sharded
from ...kernels.layers import ABSENT, SGD, AdamW, Amp
from ...optimizers.adam import AdamState, adamw
from ...optimizers.sgd import SGDState, sgd
from ...tree import working
from .store import Columns


class Kept(NamedTuple):
    """What a step keeps of a parameter from before the base, unsharded; all is written at its end."""

    g: Tensor  # raw gradient
    w: Tensor  # weights, what stands behind 16 bits
    w0: Tensor
    old: RuleState | None  # None: unconstrained
    state: RuleState | None


def step_(columns: Columns, base: AdamW | SGD, rule: Rule, numbers: Numbers, amp: Amp) -> None:
    """A whole step, the base's too."""
    if amp.found_inf is not None and amp.found_inf.item():
        return
    lr, amsgrad = as_tensor(base.lr), len(columns.moments) > 2
    if isinstance(base, AdamW):
        optimizer = adamw(lr, (base.beta1, base.beta2), base.eps, base.weight_decay, amsgrad)
    else:
        optimizer = sgd(lr, base.momentum, weight_decay=base.weight_decay, nesterov=base.nesterov)
    for i in range(len(columns.weights)):
        seen, kept = _before(columns, i, rule, numbers, amp)
        count = columns.steps[i].to(torch.int64)  # steps done before this one
        columns.steps[i].add_(1)
        moments = [column[i] for column in columns.moments]
        state = _state(base, [whole(x) for x in moments], count, kept.w)
        moved, state = optimizer.update({"w": seen}, state, {"w": kept.w})
        values = [tree["w"] for tree in state[1:] if tree]
        _write(moments[: len(values)], values[: len(moments)])
        _after_(columns, i, rule, numbers, kept, moved["w"])


def before(columns: Columns, rule: Rule, numbers: Numbers, amp: Amp) -> tuple[list[Tensor], list[Kept]]:
    """Gradients for a base that is given, none where the rule leaves them as they are, and what is kept."""
    pairs = [_before(columns, i, rule, numbers, amp) for i in range(len(columns.weights))]
    grads = []
    if any(seen is not kept.g for seen, kept in pairs):
        rows = zip(columns.weights, columns.grads, pairs, strict=True)
        grads = [sharded.place((-seen if amp.maximize else seen).to(g.dtype), w) for w, g, (seen, _) in rows]
    return grads, [_until_after(kept, rule) for _, kept in pairs]


def _until_after(kept: Kept, rule: Rule) -> Kept:
    """What outlives the step of a base that is given, without what nothing will look at."""
    if rule.after is None:
        return kept._replace(g=ABSENT, w=ABSENT, w0=ABSENT)
    # The base moves the weights in place, and some (torch's foreach SGD under nesterov) write into their gradients.
    return kept._replace(**{name: getattr(kept, name).clone() for name in rule.keeps})


def after_(columns: Columns, rule: Rule, numbers: Numbers, kept: list[Kept]) -> None:
    """New weights, once a base has moved them, and the state."""
    for i, stored in enumerate(columns.weights):
        moved = stored
        if rule.after:
            moved, old = whole(stored), kept[i].old
            # A base may leave 16-bit weights where they were: then what stands behind them is still the master copy.
            moved = rule.master(moved, kept[i].w0, old) if rule.master and old is not None else working(moved)
        _after_(columns, i, rule, numbers, kept[i], moved)


def _before(columns: Columns, i: int, rule: Rule, numbers: Numbers, amp: Amp) -> tuple[Tensor, Kept]:
    stored = whole(columns.weights[i])
    w, w0 = working(stored), columns.anchors[i]
    g = whole(columns.grads[i]).to(w.dtype)
    g = g if amp.grad_scale is None else g / amp.grad_scale.reshape(()).to(g)
    g = -g if amp.maximize else g
    if not columns.state[-1][i].numel():
        return g, Kept(g, w, w0, None, None)
    w0 = whole(w0).to(w) if w0.numel() else torch.zeros_like(w)
    old = {
        spec.name: whole(column[i]).to(torch.int64 if spec.kind == "count" else w.dtype)
        for spec, column in zip(rule.specs, columns.state, strict=False)
    }
    w = rule.master(stored, w0, old) if rule.master else w
    seen, state = rule.before(g, w, w0, old, numbers) if rule.before else (g, old)
    return seen, Kept(g, w, w0, old, state)


def _after_(columns: Columns, i: int, rule: Rule, numbers: Numbers, kept: Kept, moved: Tensor) -> None:
    state, new = kept.state, moved
    if state is not None:
        if rule.after:
            new, state = rule.after(moved, kept.w, kept.w0, kept.g, state, numbers)
        held = [column[i] for column in columns.state]
        if rule.specs:
            _write(held, [state[spec.name] for spec in rule.specs])
        else:
            held[-1].add_(1)  # a count alone says that it is initialized
    if new is not columns.weights[i]:
        _write([columns.weights[i]], [new])


def _write(old: list[Tensor], new: list[Tensor]) -> None:
    if torch.compiler.is_compiling():  # torch 2.13 loses copy_ to a 0-d tensor there
        if old:
            torch._foreach_copy_(old, new)
        return
    for a, b in zip(old, new, strict=True):
        a.copy_(sharded.place(b, a))


def _state(base: AdamW | SGD, moments: list[Tensor], count: Tensor, stored: Tensor) -> Any:
    if isinstance(base, AdamW):
        return AdamState(count, {"w": moments[0]}, {"w": moments[1]}, {"w": moments[2]} if len(moments) > 2 else ())
    # At a count of 0 the pure rule would not read a buffer, which may be loaded; one that was just made is 0.
    return SGDState(torch.ones_like(count), {"w": moments[0] if moments else torch.zeros_like(working(stored))})
