"""The optimizer behind every drop-in class, put together from parts: a base, and what holds the weights around it.

The way of a step: ``DropIn.step``, ``Own.step`` (or ``Given.step``), ``Kernel.step_``, ``Fused.step_``, a launcher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..calls import callers_level
from ..dtensors import is_dtensor
from ..kernels.layers import ABSENT
from ..types import Excludes
from . import loading, store
from .backends import BACKENDS, Backend, why_slow
from .bases import Base, Own
from .checks import (
    check_checkpoint,
    check_dtype,
    check_goes_on,
    check_gradient,
    check_group_options,
    check_no_gradient,
    check_params,
    check_shapes,
    listed,
)
from .given import Given
from .hold import Hold
from .names import Exclude
from .store import Columns

#: Attributes that pickle and deepcopy keep beside torch's.
PICKLED = ("_mover", "_hold", "_options", "_exclude", "_ran")


class DropIn(torch.optim.Optimizer):
    """A :class:`torch.optim.Optimizer` of parts.

    Args:
        mover: what moves the weights.
        hold: what holds them near their anchors; ``None``: nothing does.
        exclude: parameters that are not held.
        params, defaults: as torch takes them; those of a base that is given are its own.

    State of a constrained parameter, made at its first step: what ``hold.specs`` names, and ``anchor`` (in its own
    dtype; none for a zero anchor or one in a file; without an anchor, ``anchor_fingerprint``). Nothing enters ``state``
    before.
    """

    def __init__(
        self,
        mover: Base,
        hold: Hold | None,
        exclude: Excludes,
        params: ParamsT | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {**mover.options, **(hold.options if hold else {})}
        if isinstance(mover, Given):
            params, defaults = mover.groups(type(self).__name__, self._options, refused=DropIn)
            self.base: torch.optim.Optimizer = mover.optimizer
        assert defaults is not None
        self._mover: Base = mover
        self._hold: Hold | None = hold
        self._exclude: Exclude = Exclude(exclude)
        self._fitted: dict[Tensor, Any] = {}  # the form of the weights that a parameter's state fits
        self._checked: list[list[Any]] = []  # options of each group when they were last checked
        super().__init__(listed(type(self).__name__, params), defaults)
        self._exclude.check_all_matched(self._names())
        if self._exclude.entries and not any(held for group in self.param_groups for held in group["constrained"]):
            base = mover.formula.kernel if isinstance(mover, Own) else type(self.base)
            warnings.warn(
                f"exclude leaves {type(self).__name__} no parameter of {len(self._names())}, so it is "
                f"{base.__name__} until add_param_group brings others; exclude what is new alone, such as the head",
                stacklevel=callers_level(),
            )
        if hold is not None:
            hold.anchors.check_no_extra(self._names())
            if isinstance(mover, Given) and any(hold.rule(group).after for group in self.param_groups):
                check_goes_on(mover.optimizer, type(self).__name__)
        if isinstance(mover, Given):
            mover.take(self)
        mover.attach(self)
        # In a list, since torch before 2.12 compiles no assignment to an attribute of an optimizer.
        self._ran: list[str] = [self._pick(self.param_groups[0]).name]

    @property
    def execution(self) -> str:
        """Which backend ran last, before the first step the one that would.

        ``"single"`` (the pure function, one parameter at a time), ``"foreach"``, ``"sharded"``, ``"fused_cpu"`` or
        ``"triton"``.
        """
        return self._ran[0]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a step unscales gradients itself, and does nothing where one is infinite (GradScaler asks).

        As torch's, only where ``fused=True`` asks for it: Lightning clips no gradients that are not unscaled yet.
        """
        asked = (bool(g.get("fused")) and self._pick(g).name in ("fused_cpu", "triton") for g in self.param_groups)
        return self._mover.strict and all(asked)

    def _pick(self, group: dict[str, Any]) -> Backend:
        """The backend of a group."""
        if self._hold is None:
            return BACKENDS["single"]
        return self._hold.pick(self._wishes(group), self._mover.strict)

    def _wishes(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group as far as it may choose a backend."""
        return group if self._mover.flagged else {"params": group["params"]}

    @property
    def _holding(self) -> Hold:
        """What holds the weights, where something does."""
        assert self._hold is not None
        return self._hold

    def _title(self) -> str:
        """What a checkpoint says of its maker. A class derived outside the package loads what its parent made."""
        title = next(c.__name__ for c in type(self).__mro__ if c.__module__.startswith(f"{__package__}."))
        return f"{title}({type(self.base).__name__})" if isinstance(self._mover, Given) else title

    def _entries(self) -> set[str]:
        """Names in a parameter's state that are not the base's own."""
        return {*self._kinds(), "anchor", "anchor_fingerprint"}

    def _kinds(self) -> dict[str, str]:
        """Of the entries of a parameter's state that are not the base's own."""
        return {spec.name: spec.kind for spec in (*(self._hold.specs if self._hold else ()), *self._mover.specs)}

    # -- groups -------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`; a group may say ``constrained=False``."""
        if not isinstance(self._mover, Given) or self.param_groups is not self.base.param_groups:
            self._add_checked(param_group)
            return
        # A base may make state for what is added, or hand the group on: so it gets one that is checked already.
        if isinstance(param_group, dict) and isinstance(param_group.get("params"), Iterator):
            param_group["params"] = list(param_group["params"])
        shared = self.param_groups
        self.param_groups: list[dict[str, Any]] = list(shared)
        try:
            self._add_checked({**param_group} if isinstance(param_group, dict) else param_group)
            checked = self.param_groups[-1]
        finally:
            self.param_groups = shared
        self._mover.share(self)
        self.base.add_param_group(param_group)
        added = self.param_groups[-1]
        for name, value in checked.items():  # what the base has put in is as it wants it
            added.setdefault(name, value)
        added["constrained"] = checked["constrained"]

    def _add_checked(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        check_group_options(group, [*self.defaults, "constrained", "made_by"])
        check_params(group["params"], "param_names" in group, self._names())
        self._check_options(group)
        self._mover.check_weights(self, group)
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        constrained = [whole and not out for out in self._exclude.of(names, group["params"])]
        if self._hold is not None:
            self._hold.anchors.check(names, group["params"], constrained)
        group["constrained"], group["made_by"] = constrained, self._title()

    @property
    def _read(self) -> Collection[str]:
        """Options of a group that are looked at again; a given base may count in its groups."""
        return self.defaults if self._mover.strict else (*self._options, "lr")

    def _check_options(self, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""
        check_no_gradient(type(self).__name__, {name: group.get(name) for name in self._read})
        if self._hold is not None:
            self._hold.check(group)
        self._mover.check(group)

    def _names(self, group: dict[str, Any] | None = None) -> list[Any]:
        """Names of a group's parameters, or of all in order; their indices where they have none."""
        names: list[Any] = []
        for other in self.param_groups:
            here = other.get("param_names") or range(len(names), len(names) + len(other["params"]))
            if other is group:
                return list(here)
            names += here
        return names

    def initialized(self) -> Iterator[tuple[Any, Tensor, dict[str, Any], Tensor]]:
        """Each constrained parameter that has made a step: name (or index), weights, state and anchor (empty: zero)."""
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, p in zip(self._names(), params, strict=True):
            state = self.state.get(p, {})
            if self._hold is not None and self._hold.is_initialized(state):
                yield name, p, state, self._hold.anchors.seen(name, state)

    def _scalars(self, key: str) -> dict[Any, float]:
        """A 0-d entry of the state of each constrained parameter that has made a step, by name (or index)."""
        found = {name: state[key] for name, _, state, _ in self.initialized()}
        return dict(zip(found, floats(list(found.values())), strict=True))

    # -- a step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient (before anything has changed).
        """
        self._mover.check_ready(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._mover.attach(self)  # another state may have been swapped in, for a while or for good
        self._mover.step(self)
        return loss

    def train(self) -> None:
        """To the weights that are trained, where the base has two modes (schedule-free); elsewhere nothing."""
        self._mover.switch(self, "train")

    def eval(self) -> None:
        """To the weights that are deployed, where the base has two modes: these are held. Elsewhere nothing."""
        self._mover.switch(self, "eval")

    def _check_step(self) -> None:
        """All that can be wrong with a step."""
        for i, group in enumerate(self.param_groups):
            if len(group.get("constrained", ())) != len(group["params"]):
                raise RuntimeError(
                    f"the parameters of group {i} were changed by hand; add some by add_param_group (a wrapper's own, "
                    "not its base's), or build a new optimizer"
                )
        names = iter(self._names())
        read = self._read
        self._checked += [[]] * (len(self.param_groups) - len(self._checked))
        for i, group in enumerate(self.param_groups):
            options = [group.get(name) for name in read]
            if len(options) != len(self._checked[i]) or any(map(is_not, options, self._checked[i])):
                self._check_options(group)  # only then: to look at a tensor waits for its device
                self._checked[i] = options
            if group.get("lean"):
                self._mover.check_weights(self, group)
            for p in group["params"]:
                self._check_parameter(p, next(names))

    def _check_parameter(self, p: Tensor, name: Any) -> None:
        if p.grad is None:
            return
        check_dtype(p, name)
        form = self._fitted.get(p)
        if form is None or form[0] != p.shape:
            weights = [name for name, kind in self._kinds().items() if kind == "weights"]
            check_shapes(p, name, self.state.get(p, {}), [*weights, "anchor"])
        check_gradient(p, name)

    def _work(self) -> list[tuple[dict[str, Any], str, Columns]]:
        """Each group, its execution, and its parameters that have a gradient. Every check comes before a change."""
        if not torch.compiler.is_compiling():
            self._check_step()
            if not self._fitted:
                self._say_if_slow()
        executions = [self._pick(group).name for group in self.param_groups]
        work = []
        for group, execution in zip(self.param_groups, executions, strict=True):
            state: list[list[Tensor]] = [[] for _ in self._holding.specs]
            moments: list[list[Tensor]] = [[] for _ in self._mover.moments(group)]
            first: list[list[Tensor]] = [[] for _ in Columns._fields[:4]]
            self._init_group(group, *first, *state, *moments)
            if first[0]:
                self._ran[0] = execution
                columns = Columns._make([*first, state, moments])
                fits = self._holding.has_kernels or execution != "single"
                work.append((group, execution, store.fitting(columns) if fits else columns))
        if len(self._fitted) > sum(len(group["params"]) for group in self.param_groups):
            self._fitted.clear()  # of parameters that were swapped in for a while
        return work

    def _say_if_slow(self) -> None:
        """At a first step."""
        groups = map(self._wishes, self.param_groups) if self._holding.has_kernels else ()
        why = next(filter(None, map(why_slow, groups)), None)
        if why is not None:
            meant = "; foreach=True (of a base that is given, its own) says that it is meant, and silences this"
            warnings.warn(
                f"{type(self).__name__} steps on this CPU by foreach, about 4 times as slow as fused: {why}"
                + (meant if "foreach" in self.defaults and self._mover.flagged else ""),
                stacklevel=callers_level(),
            )

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        """Fill ``Columns``; first, make the state that a first step needs.

        torch.compile runs this method, which it knows by its name, when it traces a step, and guards what it returns.
        """
        self._mover.begin_group(group)
        hold, kinds = self._holding, self._kinds()
        keys = [spec.name for spec in hold.specs]
        moments = self._mover.moments(group)
        on_gpu = bool(group["params"]) and group["params"][0].is_cuda
        device = "own" if group.get("capturable") or (on_gpu and self._pick(group).name == "triton") else "cpu"
        lean = group.get("lean", False)
        for p, constrained, name in zip(group["params"], group["constrained"], self._names(group), strict=True):
            if p.grad is None:
                continue
            self._check_parameter(p, name)
            state = self._mover.state_of(self, p, constrained)
            if constrained and not hold.is_initialized(state):
                self._initialize(p, name, state, group)
            self._mover.begin(p, state, group)
            form = (p.shape, p.stride(), p.dtype, device, id(state), len(state), lean)
            if self._fitted.get(p) != form:
                place = p.device if device == "own" else torch.device(device)
                store.fit(p, state, kinds, place, lean, strides=hold.is_flat)
                self._fitted[p] = form
            held = [state[key] if constrained else ABSENT for key in keys]
            w0 = hold.anchors.of(p, name, state) if constrained else ABSENT
            step = state["step"] if self._mover.strict else ABSENT  # a given base's is its own
            row = [p, p.grad, step, w0, *held, *(state[key] for key in moments)]
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    def _initialize(self, p: Tensor, name: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        """The state that a first constrained step needs."""
        rule, anchors = self._holding.rule(group), self._holding.anchors
        self._fitted.pop(p, None)
        anchors.start(p, name, state)
        state.update(store.blank(rule.specs or self._holding.specs, p, rule.norm))
        # Sharded weights that are their own anchor: nothing is off, and to find that out would gather them.
        if rule.off and not (anchors.is_start and is_dtensor(p)):
            state.update(store.off(rule, p, anchors.of(p, name, state)))

    # -- saving and loading -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`; with ``save_anchor=False`` without anchors."""
        for name, p, state, _ in self.initialized():
            self._holding.anchors.sign(p, name, state)
        found = self._mover.state_dict(self, super().state_dict())
        if self._hold is None or self._hold.anchors.saved:
            return found
        left = {
            key: {name: value for name, value in state.items() if name != "anchor"}
            if isinstance(state, dict)
            else state
            for key, state in found["state"].items()
        }
        return {**found, "state": left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.load_state_dict`, but a tensor keeps the dtype it was saved in.

        The state of a base that is torch's gets the dtype of the weights, without which it cannot step.

        Raises:
            ValueError: state of another shape, an incomplete one, parameters in another order, options outside their
                domain, an anchor that is left out and not given or not the same. Nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            check_checkpoint(state_dict)

        def keep(_: Any, final: dict[str, Any]) -> None:  # what other hooks have made of it
            check_checkpoint(final)
            self._loading.update(final)

        self._loading: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            del self._loading

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fitted, self._checked = {}, []
        if "_loading" in self.__dict__:
            loading.make_ready(self, state, self._loading)
            state = self._mover.load(self, state, self._loading)
        super().__setstate__(state)
        needed = loading.needed(self)
        for group in self.param_groups:  # of an earlier version or torch
            for name in self.defaults.keys() - needed:
                group.setdefault(name, self.defaults[name])
        if isinstance(self._mover, Given):
            self.base = self._mover.optimizer
        self._mover.attach(self)


def floats(values: Sequence[Tensor]) -> list[float]:
    """Python numbers of 0-d tensors, in one transfer for each device and dtype."""
    kinds: dict[Any, list[int]] = {}
    for i, x in enumerate(values):
        kinds.setdefault((x.device, x.dtype), []).append(i)
    found: dict[int, float] = {}
    for which in kinds.values():
        found.update(zip(which, torch.stack([values[i].detach() for i in which]).tolist(), strict=True))
    return [found[i] for i in range(len(values))]
