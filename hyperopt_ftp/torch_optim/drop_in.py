"""The optimizer behind every drop-in class, put together from parts: a base, and what holds the weights around it.

The way of a step: ``DropIn.step``, ``Own.step`` (or ``Given.step``), ``Kernel.step_``, ``Fused.step_``, a launcher.
What takes part in it is collected once, in the form that backends take (``Part``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..kernels.layers import ABSENT, Amp
from ..types import Excludes
from . import checkpoints
from .checks.arguments import (
    check_dtype,
    check_gradient,
    check_group_options,
    check_params,
    check_shapes,
    refuse_modules,
)
from .checks.names import Exclude, names_in
from .checks.saved import FORMAT, check_checkpoint
from .execution import store
from .execution.backends import Part, by_device_and_dtype
from .execution.store import Columns
from .movers.given import Given
from .movers.mover import Mover, Work

#: Attributes that pickle and deepcopy keep beside torch's.
PICKLED = ("_mover", "_exclude", "_ran")


class DropIn(torch.optim.Optimizer):
    """A :class:`torch.optim.Optimizer` made of parts.

    Args:
        mover: moves the weights, and holds them near their anchors.
        exclude: parameters that are not held.
        params, defaults: as in torch; those of a given base are its own.

    State of a constrained parameter, made at its first step: the entries of the hold's specs, and ``anchor`` in its own
    dtype (none for a zero anchor or one in a file; with ``save_anchor=False``, ``anchor_fingerprint``).
    """

    def __init__(
        self,
        mover: Mover,
        exclude: Excludes,
        params: ParamsT | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        title = type(self).__name__
        if isinstance(mover, Given):
            params, defaults = mover.groups(title, refused=DropIn)
            self.base: torch.optim.Optimizer = mover.optimizer
        refuse_modules(params)
        assert params is not None
        assert defaults is not None
        self._mover: Mover = mover
        self._exclude: Exclude = Exclude(exclude)
        self._fitted: dict[Tensor, Any] = {}  # the form of the weights that a parameter's state fits
        super().__init__(params, defaults)
        self._exclude.check(self.param_groups, title)
        if isinstance(mover, Given):
            mover.take(self)
        mover.attach(self)
        # In a list, since torch before 2.12 compiles no assignment to an attribute of an optimizer.
        self._ran: list[str] = [mover.pick(self.param_groups[0]).name]

    @property
    def execution(self) -> str:
        """The backend of the last step; before the first step, the one that would run.

        ``"single"`` (the pure function, one parameter at a time), ``"foreach"``, ``"pieces"`` (rules other than FTP's,
        on many parameters at once), ``"sharded"``, ``"fused_cpu"`` or ``"triton"``.
        """
        return self._ran[0]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a step unscales gradients itself, and does nothing where one is infinite (GradScaler asks).

        As torch's, only where ``fused=True`` asks for it: Lightning clips no gradients that are not unscaled yet.
        """
        own, fused = self._mover.own, ("fused_cpu", "triton")
        return own and all(bool(g.get("fused")) and self._mover.pick(g).name in fused for g in self.param_groups)

    def _amp(self, name: str) -> Tensor | None:
        """What a GradScaler leaves to a step that unscales by itself."""
        return getattr(self, name, None) if self._mover.own else None

    # -- groups -------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`; a group may say ``constrained=False``."""
        if isinstance(self._mover, Given) and self.param_groups is self.base.param_groups:
            self._mover.add(self, param_group, self._add_checked)
        else:
            self._add_checked(param_group)

    def _add_checked(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        check_group_options(group, [*self.defaults, "constrained", "made_by"])
        check_params(group["params"], "param_names" in group, names_in(self.param_groups))
        self._mover.check_options(self, group)
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        constrained = [whole and not out for out in self._exclude.of(names, group["params"])]
        self._mover.hold.anchors.check(names, group["params"], constrained)
        group["constrained"], group["made_by"] = constrained, f"{checkpoints.maker(self, self._mover)}{FORMAT}"

    def initialized(self) -> Iterator[tuple[Any, Tensor, dict[str, Any], Tensor]]:
        """Each constrained parameter that has made a step: name (or index), weights, state and anchor (empty: zero)."""
        params, hold = chain.from_iterable(group["params"] for group in self.param_groups), self._mover.hold
        for name, p in zip(names_in(self.param_groups), params, strict=True):
            state = self.state.get(p, {})
            if hold.is_initialized(state):
                yield name, p, state, hold.anchors.of(name, state)

    # -- a step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a complex gradient, or a sparse one of a parameter that is not excluded (before anything has
                changed).
        """
        self._mover.check_ready(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._mover.attach(self)  # another state may have been swapped in, for a while or for good
        overflow = self._amp("found_inf")
        if overflow is None or overflow.device.type != "cpu" or not overflow.item():  # else not even first state
            self._mover.step(self._collect)
        return loss

    def train(self) -> None:
        """Switch to the training weights, if the base has two modes (schedule-free); else do nothing."""
        self._mover.switch(self, "train")

    def eval(self) -> None:
        """Switch to the weights to deploy, which the constraint acts on, if the base has two modes; else do nothing."""
        self._mover.switch(self, "eval")

    def _check_parameter(self, p: Tensor, name: Any, constrained: bool) -> None:
        if p.grad is None:
            return
        check_dtype(p, name)
        form, state = self._fitted.get(p), self.state.get(p, {})
        if form is None or form[0] != p.shape:
            weights = [name for name, kind in self._mover.kinds.items() if kind == "weights"]
            check_shapes(p, name, state, [*weights, "anchor"])
        if constrained and not self._mover.hold.is_initialized(state):
            self._mover.hold.anchors.check_unchanged(name)
        check_gradient(p, name, constrained)

    def _collect(self) -> Work:
        """What takes part in a step, by its backend. Every check comes before a change."""
        if not torch.compiler.is_compiling():
            self._mover.check_groups(self)
            names = iter(names_in(self.param_groups))
            for group in self.param_groups:
                for p, constrained in zip(group["params"], group["constrained"], strict=True):
                    self._check_parameter(p, next(names), constrained)
        amps = [self._amp("grad_scale"), self._amp("found_inf")]
        backends = [self._mover.pick(group) for group in self.param_groups]
        work: Work = {}
        for group, backend in zip(self.param_groups, backends, strict=True):
            if any(p.grad is not None for p in group["params"]):
                self._ran[0] = backend.name
            for columns in by_device_and_dtype(self._columns(group)):
                like = columns.weights[0]
                near = (x if x is None else x.to(like.device, non_blocking=True) for x in amps)
                amp = Amp(bool(group.get("maximize", False)), *near)
                part = Part(columns, self._mover.numbers(group, like), group, self._mover.hold, amp)
                work.setdefault(backend, []).append(part)
        if len(self._fitted) > sum(len(group["params"]) for group in self.param_groups):
            self._fitted.clear()  # of parameters that were swapped in for a while
        return work

    def _columns(self, group: dict[str, Any]) -> Columns:
        """The parameters of a group that have a gradient; around a given base, those that are held."""
        state: list[list[Tensor]] = [[] for _ in self._mover.hold.specs]
        moments: list[list[Tensor]] = [[] for _ in self._mover.moments(group)]
        first: list[list[Tensor]] = [[] for _ in Columns._fields[:4]]
        self._init_group(group, *first, *state, *moments)
        columns = Columns._make([*first, state, moments])
        if not self._mover.own:
            columns = store.choose(columns, [i for i, x in enumerate(state[-1]) if x.numel()])
        return store.fitting(columns)

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        """Fill ``Columns``; first, make the state that a first step needs.

        torch.compile runs this method, which it knows by its name, when it traces a step, and guards what it returns.
        """
        mover, hold = self._mover, self._mover.hold
        mover.begin_group(group)
        keys, moments = [spec.name for spec in hold.specs], mover.moments(group)
        on_gpu = bool(group["params"]) and group["params"][0].is_cuda
        device = "own" if group.get("capturable") or (on_gpu and mover.pick(group).name == "triton") else "cpu"
        lean = mover.own and group.get("lean", False)  # a given base's is its own
        names = names_in(self.param_groups, group)
        for p, constrained, name in zip(group["params"], group["constrained"], names, strict=True):
            if p.grad is None:
                continue
            self._check_parameter(p, name, constrained)
            state = self.state[p] if constrained or mover.own else self.state.get(p, {})
            if constrained and not hold.is_initialized(state):
                self._fitted.pop(p, None)
                hold.begin(p, name, state, group)
            mover.begin(p, state, group)
            form = (p.shape, p.stride(), p.dtype, device, id(state), len(state), lean)
            if self._fitted.get(p) != form:
                place = p.device if device == "own" else torch.device(device)
                store.fit(p, state, mover.kinds, place, lean)
                self._fitted[p] = form
            held = [state[key] if constrained else ABSENT for key in keys]
            w0 = hold.anchors.of(name, state) if constrained else ABSENT
            step = state["step"] if mover.own else ABSENT  # a given base's is its own
            grad = p.grad.to_dense() if mover.own and p.grad.is_sparse else p.grad  # as of sparse=False
            row = [p, grad, step, w0, *held, *(state[key] for key in moments)]
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    # -- saving and loading -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`; with ``save_anchor=False`` without anchors."""
        anchors = self._mover.hold.anchors
        for name, p, state, _ in self.initialized():
            anchors.sign(p, name, state)
        found = self._mover.state_dict(self, super().state_dict())
        return found if anchors.saved else checkpoints.without_anchors(found)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.load_state_dict`, but a tensor keeps the dtype in which it was saved.

        The state of a base from torch gets the dtype of the weights, which its step needs.

        Raises:
            ValueError: state of another shape, incomplete state, parameters in another order, options outside their
                domain, an anchor that was left out and is not given or not the same. Nothing has changed then.
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
            checkpoints.warn_of_another_anchor(self, self._mover, self._loading)
        finally:
            handle.remove()
            del self._loading

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fitted = {}
        if "_loading" in self.__dict__:
            checkpoints.make_ready(self, self._mover, state, self._loading)
            state = self._mover.load(state, self._loading)
        super().__setstate__(state)
        if isinstance(self._mover, Given):
            self.base = self._mover.optimizer
        self._mover.attach(self)


def scalars(opt: DropIn, key: str) -> dict[Any, float]:
    """A 0-d entry of the state of each constrained parameter that has made a step, by name (or index)."""
    return {name: state[key].item() for name, _, state, _ in opt.initialized()}
