"""Holding parameters near their anchors by a rule: what most drop-in classes do around their base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..anchored.rule import Rule, Spec
from ..hparams import DOMAINS, check_number
from ..kernels.layers import Ball
from . import backends
from .anchor_source import AnchorSource

if TYPE_CHECKING:
    from .optimizer import DropIn

__all__ = ["Hold", "Method"]

#: The state of a parameter whose rule has none: it has begun.
BEGUN = (Spec("anchor_step", "count"),)


class Method(ABC):
    """What a drop-in class does around the step of its base.

    Attributes:
        options: its entries in a group, with their defaults.
        specs: its state of a parameter, all entries or none.
    """

    options: dict[str, Any]
    specs: tuple[Spec, ...]

    @property
    def anchors(self) -> AnchorSource | None:
        """Where anchors come from; ``None`` where there are none."""
        return None

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """``ValueError`` or ``TypeError`` for options of a group that cannot be."""

    @abstractmethod
    def pick(self, group: dict[str, Any], strict: bool) -> backends.Backend:
        """The backend of a group; ``strict``: its flags are meant for it."""

    @abstractmethod
    def step(self, opt: DropIn) -> None:
        """A step, once the closure has run. After an error nothing has changed."""


class Hold(Method):
    """A :class:`~hyperopt_ftp.anchored.Rule` around the base.

    Args:
        options: entries of a group, with their defaults.
        rule: the rule of a group, checked.
        anchors: where anchors come from.
        specs: the rule's state.
        ball: numbers of FTP's kernels for a group; ``None``: they cannot execute the rule.
    """

    def __init__(
        self,
        options: dict[str, Any],
        rule: Callable[[dict[str, Any]], Rule],
        anchors: AnchorSource,
        specs: tuple[Spec, ...] = (),
        ball: Callable[[dict[str, Any]], Ball] | None = None,
    ) -> None:
        self.options: dict[str, Any] = options
        self.specs: tuple[Spec, ...] = specs or BEGUN
        self.rule: Callable[[dict[str, Any]], Rule] = rule
        self.ball: Callable[[dict[str, Any]], Ball] | None = ball
        self._anchors: AnchorSource = anchors

    @property
    def anchors(self) -> AnchorSource:
        return self._anchors

    def check(self, group: dict[str, Any]) -> None:
        for name in self.options.keys() & DOMAINS.keys():
            check_number(name, group[name])
        self.rule(group)

    def pick(self, group: dict[str, Any], strict: bool) -> backends.Backend:
        return backends.BACKENDS["single"] if self.ball is None else backends.pick(group, strict)

    def step(self, opt: DropIn) -> None:
        opt._mover.step(opt, self)

    def is_initialized(self, state: dict[str, Any]) -> bool:
        """Whether a parameter has made a constrained step."""
        return self.specs[-1].name in state
