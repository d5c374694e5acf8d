"""Holding parameters near their anchors by a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...anchored.rule import Rule, Spec
from ...dtensors import is_dtensor
from ...hparams import DOMAINS, check_number
from ...kernels.layers import Ball
from ...types import Anchor, Device
from ..anchors.source import AnchorSource
from . import store
from .many import Many

#: Arguments of an AnchorSource.
Anchors = tuple[Anchor, torch.dtype | None, Device, bool]


class Hold:
    """A :class:`~hyperopt_ftp.anchored.Rule` around what moves the weights.

    Args:
        options: entries of a group, with their defaults.
        rule: the rule, checked, from values of the options by name.
        anchors: where anchors come from, and how they are kept.
        ball: numbers of FTP's kernels for a group; ``None``: they cannot execute the rule.
        many: the rule's execution on many tensors for a group; ``None``: it has none but the pure one.

    Attributes:
        specs: the rule's state; a rule without any counts its steps.
    """

    def __init__(
        self,
        options: dict[str, Any],
        rule: Callable[..., Rule],
        anchors: Anchors,
        ball: Callable[[dict[str, Any]], Ball] | None = None,
        many: Callable[[dict[str, Any]], Many] | None = None,
    ) -> None:
        self.options: dict[str, Any] = options
        self._rule: Callable[..., Rule] = rule
        self.anchors: AnchorSource = AnchorSource(*anchors)
        self.specs: tuple[Spec, ...] = rule(**options).specs or (Spec("anchor_step", "count"),)
        self.ball: Callable[[dict[str, Any]], Ball] | None = ball
        self.many: Callable[[dict[str, Any]], Many] | None = many

    def rule(self, group: dict[str, Any]) -> Rule:
        return self._rule(**{name: group[name] for name in self.options})

    def check(self, group: dict[str, Any]) -> None:
        """``ValueError`` or ``TypeError`` for options of a group that cannot be."""
        rule = self.rule(group)
        for name in rule.hparams:  # one number: a rule also takes trees
            check_number(name, group[name], (DOMAINS if rule.domains is None else rule.domains)[name])
        missing = [name for name in rule.reads if group.get(name) is None]
        if missing:
            raise ValueError(f"the optimizer to be held has no {missing[0]}, its options are {sorted(group)}")

    def begin(self, p: Tensor, name: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Put the state into a parameter's that a first constrained step needs."""
        rule = self.rule(group)
        self.anchors.start(p, name, state)
        state.update(store.blank(rule.specs or self.specs, p, rule.norm))
        # Sharded weights that are their own anchor: nothing is off, and to find that out would gather them.
        if rule.off and not (self.anchors.is_start and is_dtensor(p)):
            state.update(store.off(rule, p, self.anchors.of(name, state)))

    def is_initialized(self, state: dict[str, Any]) -> bool:
        """Whether a parameter has made a constrained step."""
        return self.specs[-1].name in state
