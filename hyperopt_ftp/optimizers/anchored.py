"""An optimizer held near an anchor by a rule that looks at one tensor at a time: what L2-SP, SPD and others share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..hparams import domains_of
from ..types import Optimizer
from .combinators import check_new_names, extended
from .leafwise import check_grads, check_params, check_state
from .projected import anchors, by_name, check_anchor, numbers

__all__ = ["AnchoredState", "Rule", "anchored", "dot"]

Numbers = dict[str, Any]  # the rule's hparams and the base's lr, of one tensor
RuleState = dict[str, Tensor]  # of one tensor, by the names that checkpoints show


class Rule(NamedTuple):
    """How one tensor is held near its anchor. Both parts are pure; each is optional.

    Fields
        hparams: the rule's own, by name.
        before: ``before(g, d, state, h) -> (g, state)``; the gradient that the base gets, from the raw one and the
            deviation ``d = W - W0`` before the step.
        after: ``after(moved, w, w0, g, h) -> W``; the new weights, from those that the base has made, those before, the
            anchor, and the raw gradient.
        start: ``start(w) -> state`` of a tensor at the anchor; tensors of the shape of ``w``, or 0-d.
    """

    hparams: dict[str, Any]
    before: Callable[[Tensor, Tensor, RuleState, Numbers], tuple[Tensor, RuleState]] | None = None
    after: Callable[[Tensor, Tensor, Tensor, Tensor, Numbers], Tensor] | None = None
    start: Callable[[Tensor], RuleState] | None = None


class AnchoredState(NamedTuple):
    """State of an optimizer that is held by a :class:`Rule`."""

    base: Any
    rule: dict[str, RuleState]  # by path of the constrained tensors


def anchored(base: Optimizer, anchor: Any, rule: Rule) -> Optimizer:
    """``base`` held near ``anchor`` by ``rule``; 16-bit weights are computed in float32.

    The rule's hparams are numbers for all constrained tensors, or dicts by path of one for each. The lr that a rule
    sees is the hparam of ``base``: a schedule goes around the result, ``scheduled(anchored(...))``, not inside.
    """
    fixed, own = anchors(anchor), rule.hparams
    check_new_names(base, own)
    for key, value in own.items():
        if not isinstance(value, Tensor) and tree.by_path(value).keys() != fixed.keys():
            raise ValueError(f"{key} must have the names of the anchor {list(fixed)}, got {list(tree.by_path(value))}")
    if "lr" not in base.hparams:
        raise ValueError(f"the optimizer to be held has no lr, its hparams are {sorted(base.hparams)}")

    def init(params: Any, hparams: Any = None) -> AnchoredState:
        check_params(params)
        check_anchor(fixed, params)
        constrained = {name: tree.working(w) for name, w in tree.pick(params, fixed).items()}
        held = {name: rule.start(w) if rule.start else {} for name, w in constrained.items()}
        return AnchoredState(base.init(params, extended(hparams, base, own)[0]), held)

    def update(grads: Any, state: AnchoredState, params: Any, hparams: Any = None) -> tuple[Any, AnchoredState]:
        check_state(AnchoredState, state)
        check_grads(grads, params)
        bases, owns = extended(hparams, base, own)
        stored, raw = tree.pick(params, fixed), tree.pick(grads, fixed)
        before = {name: tree.working(w) for name, w in stored.items()}
        w0 = {name: fixed[name].to(w.dtype) for name, w in before.items()}
        raw = {name: g.to(before[name].dtype) for name, g in raw.items()}
        columns = {key: numbers(key, value, fixed) for key, value in owns.items()}
        columns["lr"] = by_name("lr", bases["lr"], fixed)
        h = {name: {key: column[name] for key, column in columns.items()} for name in fixed}
        seen, held = raw, state.rule
        if rule.before:
            pairs = {n: rule.before(raw[n], w - w0[n], state.rule[n], h[n]) for n, w in before.items()}
            seen = {name: g.to(before[name].dtype) for name, (g, _) in pairs.items()}
            held = {name: new for name, (_, new) in pairs.items()}
        moved, inner = base.update(tree.put(grads, seen), state.base, tree.put(params, before), bases)
        new = tree.pick(moved, fixed)
        if rule.after:
            new = {name: rule.after(w, before[name], w0[name], raw[name], h[name]) for name, w in new.items()}
        new = {name: w.to(stored[name].dtype) for name, w in new.items()}
        return tree.put(moved, new), AnchoredState(inner, held)

    def start(params: Any, hparams: Any) -> Any:
        bases, owns = extended(hparams, base, own)
        return {**(base.start(params, bases) if base.start else bases), **owns}

    def settle(hparams: Any, new_state: AnchoredState) -> Any:
        bases, owns = extended(hparams, base, own)
        return {**(base.settle(bases, new_state.base) if base.settle else bases), **owns}

    has = (start if base.start else None, settle if base.settle else None)
    return Optimizer(init, update, {**base.hparams, **own}, *has, {**base.domains, **domains_of(own)}, base.tunes)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all entries, 0-d."""
    return (a * b).sum()
