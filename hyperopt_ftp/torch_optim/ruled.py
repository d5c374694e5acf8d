"""The pure rules of :mod:`hyperopt_ftp.optimizers.anchored` around an optimizer that is given."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..hparams import as_tensor
from ..kernels import sharded
from ..kernels.layers import NOTHING
from ..optimizers.anchored import Numbers, Rule, RuleState
from ..tree import working
from .around import Around

__all__ = ["Ruled"]


class _Held(NamedTuple):
    """A parameter that a step holds near its anchor; whole, where it is spread over processes."""

    p: Tensor
    kept: dict[str, Any]  # its state
    rule: Rule
    numbers: Numbers
    sign: int  # -1 under maximize
    w: Tensor  # before the step, in working precision
    w0: Tensor
    g: Tensor  # the raw gradient


class Ruled(Around):
    """Base of the classes that are one :class:`~hyperopt_ftp.optimizers.anchored.Rule` each.

    The pure functions themselves, one parameter at a time: what a step costs is in ``docs/choosing.md``. A parameter
    that is spread over processes is gathered for its step.
    """

    HELD: ClassVar[tuple[str, ...]] = ("anchor_step",)
    COUNTS: ClassVar[frozenset[str]] = frozenset({"anchor_step"})

    def _rule(self, group: dict[str, Any]) -> Rule:
        """The rule with a group's options, checked."""
        raise NotImplementedError

    def _pick(self, group: dict[str, Any]) -> str:
        return "single"

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        self._rule(group)

    def _step(self) -> None:
        self._check_step()
        fresh, raw = self._fresh(), {}
        try:
            work = [held for group in self.param_groups for held in self._work(group)]
            new_states = [self._before(held) for held in work]
            for held, (g, _) in zip(work, new_states, strict=True):
                raw[held.p], held.p.grad = held.p.grad, g
            self.base.step()
        except BaseException:
            self._take_back(fresh)
            raise
        finally:
            for p, grad in raw.items():
                p.grad = grad
        self._join_waiting()
        for held, (_, state) in zip(work, new_states, strict=True):
            self._after(held, state)

    def _work(self, group: dict[str, Any]) -> list[_Held]:
        self._begin_base(group)
        rule, sign = self._rule(group), -1 if group.get("maximize", False) else 1
        numbers = {**rule.hparams, "lr": as_tensor(group["lr"]).reshape(())}
        names, found = group.get("param_names") or self._indices(group), []
        for p, constrained, name in zip(group["params"], group["constrained"], names, strict=True):
            if p.grad is None or not constrained:
                continue
            state = self._state_of(p)
            if not self._begun(state):
                self._anchor.start(p, name, state)
                self._start(p, state, rule)
            w = working(sharded.whole(p.detach()))
            kept = self._anchor.of(p, name, state)
            w0 = torch.zeros_like(w) if kept is NOTHING else sharded.whole(kept).to(w)
            g = sharded.whole(p.grad).to(w.dtype)
            found.append(
                _Held(p, state, rule, numbers, sign, w.clone() if rule.after else w, w0, g if sign > 0 else -g)
            )
        return found

    def _start(self, p: Tensor, state: dict[str, Any], rule: Rule) -> None:
        first = rule.start(sharded.whole(p.detach())) if rule.start else {}
        first = {key: _spread(value, p) if key in self.WHOLE else value for key, value in first.items()}
        counts = {key: torch.zeros((), dtype=torch.float32) for key in self.COUNTS}
        state.update({key: {**first, **counts}[key] for key in self.HELD})

    def _before(self, held: _Held) -> tuple[Tensor | None, RuleState]:
        """The gradient for the base, in the form of the raw one, and the rule's new state."""
        grad = held.p.grad
        if held.rule.before is None or grad is None:
            return grad, {}
        state = {}
        for key in self.HELD:
            value = held.kept[key]
            state[key] = value.to(torch.int64) if key in self.COUNTS else sharded.whole(value).to(held.w.dtype)
        g, state = held.rule.before(held.g, held.w - held.w0, state, held.numbers)
        return _spread((held.sign * g).to(grad.dtype), held.p), state

    def _after(self, held: _Held, state: RuleState) -> None:
        """The new weights, once the base has moved them, and the state."""
        if held.rule.after is not None:
            moved = working(sharded.whole(held.p.detach()))
            new = held.rule.after(moved, held.w, held.w0, held.g, held.numbers)
            held.p.copy_(_spread(new.to(held.p.dtype), held.p))
        if not held.rule.start:
            held.kept[self.HELD[-1]].add_(1)
            return
        for key in self.HELD:
            new, old = _spread(state[key], held.p) if key in self.WHOLE else state[key], held.kept[key]
            if key in self.COUNTS or old.dtype == new.dtype:
                old.copy_(new)
            else:  # the weights have another dtype than when they began
                held.kept[key] = new


def _spread(x: Tensor, p: Tensor) -> Tensor:
    """As ``p`` is, where that is spread over processes."""
    return sharded.place(x, p) if sharded.is_spread(p) else x
