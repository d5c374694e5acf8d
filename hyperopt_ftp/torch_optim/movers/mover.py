"""What moves the weights of a drop-in optimizer, together with what holds them near their anchors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from operator import is_not
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from ...anchored.rule import Spec
from ...kernels.layers import SGD, AdamW
from ..checks.arguments import check_lean, check_no_gradient
from ..execution.backends import SINGLE, Backend, Part, pick, pick_many
from ..execution.hold import Hold

#: What takes part in a step; each backend steps its parts at once.
Work = dict[Backend, list[Part]]


class Mover(ABC):
    """What moves the weights of a drop-in optimizer.

    Args:
        hold: what holds them near their anchors.
        specs: state that is made and read for the mover, beside the hold's.

    Attributes:
        own: whether the whole step is ours: a group's flags choose our backends, and unconstrained parameters take
            part.
        flagged: whether a group's ``foreach`` and ``fused`` are torch's, which choose a backend if it is not ours.
        whole: whether a checkpoint has all that a group uses of ``specs``, or none.
        kinds: by name, of the entries of a parameter's state that specs make.
        ours: names of all entries that do not belong to a given base.
    """

    own: bool
    flagged: bool = True
    whole: bool = False

    def __init__(self, hold: Hold, specs: tuple[Spec, ...] = ()) -> None:
        self.hold: Hold = hold
        self.kinds: dict[str, str] = {spec.name: spec.kind for spec in (*hold.specs, *specs)}
        self.ours: frozenset[str] = frozenset({*self.kinds, "anchor", "anchor_fingerprint"})
        self._checked: list[list[Any]] = []  # options of each group when they were last checked

    @abstractmethod
    def check_ready(self, opt: Optimizer) -> None:
        """``RuntimeError`` where a step cannot begin."""

    @abstractmethod
    def step(self, collect: Callable[[], Work]) -> None:
        """A step on what is collected. After an error nothing has changed, unless a given base has moved."""

    def pick(self, group: dict[str, Any]) -> Backend:
        """The backend of a group."""
        wishes = group if self.flagged else {"params": group["params"]}
        if self.hold.ball is not None:
            return pick(wishes, self.own)
        return SINGLE if self.hold.many is None else pick_many(wishes)

    def numbers(self, group: dict[str, Any], like: Tensor) -> AdamW | SGD | None:
        """What kernels need of a group for the weights ``like``; ``None``: they do not move these."""
        return None

    def moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Which of its state a step of a group takes, in the order of ``Columns.moments``."""
        return ()

    def attach(self, opt: Optimizer) -> None:
        """Take over the optimizer's groups and state as they are now, where they are shared."""

    def switch(self, opt: Optimizer, mode: Literal["train", "eval"]) -> None:
        """To one of the two modes that a base may have."""

    def begin_group(self, group: dict[str, Any]) -> None:
        """Before the state of a group's parameters is made."""

    def begin(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Put into a parameter's state what its step needs of the base's, once the hold's is there."""

    def read(self, opt: Optimizer) -> Collection[str]:
        """Options of a group that are looked at again; a given base may count in its groups."""
        return opt.defaults if self.own else (*self.hold.options, "lr")

    def check_groups(self, opt: Optimizer) -> None:
        """Before a step: groups as they were made, and options that may have been changed since."""
        read = self.read(opt)
        self._checked += [[]] * (len(opt.param_groups) - len(self._checked))
        for i, group in enumerate(opt.param_groups):
            if isinstance(group.get("constrained"), bool):
                raise TypeError(f"constrained of group {i} must now be a list, one bool for each of its parameters")
            if len(group.get("constrained", ())) != len(group["params"]):
                raise RuntimeError(
                    f"the parameters of group {i} were changed by hand; add some by add_param_group (a wrapper's own, "
                    "not its base's), or build a new optimizer"
                )
            options = [group.get(name) for name in read]
            if len(options) != len(self._checked[i]) or any(map(is_not, options, self._checked[i])):
                self.check_options(opt, group)  # only then: to look at a tensor waits for its device
                self._checked[i] = options
            if self.own:
                check_lean(group)

    def check_options(self, opt: Optimizer, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""
        check_no_gradient(type(opt).__name__, {name: group.get(name) for name in self.read(opt)})
        self.hold.check(group)
        if group.get("differentiable"):
            raise ValueError("a step has no derivative: differentiable must be False; pure rules have one, as hft.ftp")
        self.check(group)

    def check(self, group: dict[str, Any]) -> None:
        """The options that are the mover's own."""

    def state_dict(self, opt: Optimizer, found: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint: ``found``, in the form that the base's own methods need."""
        return found

    def load(self, state: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Take over checked groups and state, or an error and no change; returns what the optimizer is to have."""
        return state
