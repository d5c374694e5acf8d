"""What the drop-in classes share: groups and their checks, lazy state, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_not
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hparams import check_number, is_number
from ..kernels import sharded
from .anchor_source import AnchorSource
from .checks import (
    check_checkpoint,
    check_dtype,
    check_group_options,
    check_maker,
    check_order,
    check_params,
    check_shapes,
    check_state,
    listed,
)
from .names import Exclude

__all__ = ["Anchored", "floats"]


class Anchored(torch.optim.Optimizer):
    """Base of the drop-in classes: parameters that are held near their anchors, and others.

    State of a constrained parameter, made at its first step: ``anchor`` (in its own dtype; none for a zero anchor or
    one in a file; without an anchor, ``anchor_fingerprint``) and what ``HELD`` names, in float32, or float64 for
    float64 weights, also after loading; counts in float32. Nothing enters ``state`` before.
    """

    HELD: ClassVar[tuple[str, ...]] = ()  #: state of a constrained parameter, all or none, beside its anchor
    WHOLE: ClassVar[frozenset[str]] = frozenset()  #: those of them that have the shape of the weights
    OPTIONS: ClassVar[tuple[str, ...]] = ()  #: group entries that are the class's own, and not its base's
    NUMBERS: ClassVar[tuple[str, ...]] = ()  #: group entries that are checked against their domains
    COUNTS: ClassVar[frozenset[str]] = frozenset()  #: state that counts steps
    _OWN: ClassVar[frozenset[str]] = frozenset({"anchor"})  #: state that this class reads, and not another base
    KEPT: ClassVar[tuple[str, ...]] = (
        "_anchor",
        "_exclude",
        "_ran",
    )  #: attributes that pickle and deepcopy keep beside torch's

    def __init__(self, params: Any, defaults: dict[str, Any], anchor: AnchorSource, exclude: Any) -> None:
        self._anchor = anchor
        self._fitted: dict[Tensor, Any] = {}  # the form of the weights that a parameter's state fits
        self._checked: list[list[Any]] = []  # options of each group when they were last checked
        self._exclude = Exclude(exclude)
        super().__init__(listed(type(self).__name__, params), defaults)
        self._exclude.check_all_matched(self._names())
        self._anchor.check_no_extra(self._names())
        # In a list, since torch before 2.12 compiles no assignment to an attribute of an optimizer.
        self._ran = [self._pick(self.param_groups[0])]

    @property
    def execution(self) -> str:
        """Which execution ran last, before the first step the one that would.

        ``"single"`` (the pure function, one parameter at a time), ``"foreach"``, ``"sharded"``, ``"fused_cpu"`` or
        ``"triton"``.
        """
        return self._ran[0]

    def _title(self) -> str:
        """What a checkpoint says of its maker. A class derived outside the package loads what its parent made."""
        return next(c.__name__ for c in type(self).__mro__ if c.__module__.startswith(f"{__package__}."))

    def _base_options(self) -> list[str]:
        """Hyperparameters of the base, which a checkpoint of the base alone has too."""
        return [name for name, value in self.defaults.items() if is_number(value) and name not in self.OPTIONS]

    def _pick(self, group: dict[str, Any]) -> str:
        """The execution of a group."""
        raise NotImplementedError

    def _shapes(self, p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        """Shapes of the state that ``HELD`` names."""
        return {key: p.shape if key in self.WHOLE else torch.Size(()) for key in self.HELD}

    def _begun(self, state: Mapping[str, Any]) -> bool:
        """Whether a parameter has made a constrained step."""
        return self.HELD[-1] in state

    # -- groups -------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`; a group may say ``constrained=False``."""
        self._append_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _append_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_group_options(group, [*self.defaults, "constrained", "made_by"])
        check_params(group["params"], "param_names" in group, self._names())
        self._check_options(group)
        self._check_weights(group)
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        constrained = [whole and not out for out in self._exclude.of(names, group["params"])]
        self._anchor.check(names, group["params"], constrained)
        group["constrained"], group["made_by"] = constrained, self._title()

    def _check_options(self, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""
        for name in self.NUMBERS:
            check_number(name, group[name])

    def _check_weights(self, group: dict[str, Any]) -> None:
        """Whether the options of a group can be had with its weights."""

    def _names(self) -> list[Any]:
        """Names of all parameters in order; their indices where they have none."""
        names: list[Any] = []
        for group in self.param_groups:
            names += group.get("param_names") or range(len(names), len(names) + len(group["params"]))
        return names

    def begun(self) -> Iterator[tuple[Any, Tensor, dict[str, Any], Tensor]]:
        """Each constrained parameter that has made a step: name (or index), weights, state and anchor (empty: zero)."""
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, p in zip(self._names(), params, strict=True):
            state = self.state.get(p, {})
            if self._begun(state):
                yield name, p, state, self._anchor.seen(name, state)

    def _held(self, key: str) -> dict[Any, float]:
        """A 0-d state of each constrained parameter that has made a step, by name (or index)."""
        found = {name: state[key] for name, _, state, _ in self.begun()}
        return dict(zip(found, floats(list(found.values())), strict=True))

    # -- a step -------------------------------------------------------------------------------------------------

    def _check_step(self) -> None:
        """All that can be wrong with a step."""
        for i, group in enumerate(self.param_groups):
            if len(group.get("constrained", ())) != len(group["params"]):
                raise RuntimeError(
                    f"the parameters of group {i} were changed by hand; add some by add_param_group (a wrapper's own, "
                    "not its base's), or build a new optimizer"
                )
        names = iter(self._names())
        self._checked += [[]] * (len(self.param_groups) - len(self._checked))
        for i, group in enumerate(self.param_groups):
            options = [group.get(name) for name in self.defaults]
            if len(options) != len(self._checked[i]) or any(map(is_not, options, self._checked[i])):
                self._check_options(group)  # only then: to look at a tensor waits for its device
                self._checked[i] = options
            if group.get("lean"):
                self._check_weights(group)
            for p in group["params"]:
                self._check_gradient(p, next(names))

    def _indices(self, group: dict[str, Any]) -> range:
        first = 0
        for other in self.param_groups:
            if other is group:
                break
            first += len(other["params"])
        return range(first, first + len(group["params"]))

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        return self.state[p]

    def _check_gradient(self, p: Tensor, name: Any) -> None:
        grad = p.grad
        if grad is None:
            return
        check_dtype(p, name)
        form = self._fitted.get(p)
        if form is None or form[0] != p.shape:
            check_shapes(p, name, self.state.get(p, {}), self.WHOLE)
        if grad.shape != p.shape:
            raise RuntimeError(
                f"the gradient of parameter {name!r} has the shape {tuple(grad.shape)}, and the parameter "
                f"{tuple(p.shape)}; call zero_grad() after weights are resized"
            )
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"gradients must be dense, got {grad.layout} for parameter {name!r}; use dense embeddings, or another "
                "optimizer for that parameter"
            )
        if not grad.is_floating_point():
            raise RuntimeError(f"gradients must be real and floating, got {grad.dtype} for parameter {name!r}")
        if grad.device != p.device:
            raise RuntimeError(
                f"the gradient of parameter {name!r} is on {grad.device}, the parameter on {p.device}; move the model "
                "before the optimizer is built"
            )

    # -- saving and loading -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`; with ``save_anchor=False`` without anchors."""
        for name, p in zip(self._names(), chain.from_iterable(g["params"] for g in self.param_groups), strict=True):
            if self._begun(self.state.get(p, {})):
                self._anchor.sign(p, name, self.state[p])
        found = super().state_dict()
        if self._anchor.saved:
            return found
        kept = {
            key: {name: value for name, value in state.items() if name != "anchor"}
            if isinstance(state, dict)
            else state
            for key, state in found["state"].items()
        }
        return {**found, "state": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.load_state_dict`, but every tensor keeps the dtype it was saved in.

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
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fitted, self._checked = {}, []
        if "_loading" in self.__dict__:
            self._restore(state, self._loading)
            for old, new in zip(self.param_groups, state["param_groups"], strict=True):
                check_maker(new, self._title(), self._base_options())
                for key in (*self.defaults, "constrained", "made_by"):  # absent in a checkpoint of the plain base
                    if key in old:
                        new.setdefault(key, old[key])
                for key in ("foreach", "fused"):  # of this machine and these tensors, not of the run
                    if key in old:
                        new[key] = old[key]
                if "param_names" in old:
                    check_order(old["param_names"], new["param_names"])
                    new["param_names"] = old["param_names"]
                self._check_options(new)
                self._check_weights(new)
                flags = new["constrained"]
                if not isinstance(flags, list) or [type(value) for value in flags] != [bool] * len(new["params"]):
                    raise ValueError(f"the checkpoint's constrained must be a bool for each parameter, got {flags!r}")
                self._anchor.check(new.get("param_names"), new["params"], flags)
                names = new.get("param_names") or self._indices(old)
                for p, name, constrained in zip(new["params"], names, flags, strict=True):
                    found = state["state"].get(p, {})
                    check_state(p, name, found, self._shapes(p, new), self._needed(new), self._OWN, self.COUNTS)
                    if constrained and self._begun(found):
                        self._anchor.restore(p, name, found, self.state.get(p, {}))
            self._check_base(state)
        super().__setstate__(state)

    def _restore(self, loaded: dict[str, Any], saved: dict[str, Any]) -> None:
        """State in the dtype and device that were chosen, where torch casts it to those of the parameter; spread as the
        parameter is, where it was saved by another number of processes."""
        ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
        params = ((group, p) for group in loaded["param_groups"] for p in group["params"])
        for key, (group, p) in zip(ids, params, strict=True):
            for name, value in saved["state"].get(key, {}).items():
                now = loaded["state"][p][name]
                if isinstance(value, Tensor) and now.dtype != value.dtype:
                    now = value.to(now.device)
                if name == "anchor" and self._anchor.device is not None:
                    now = now.to(self._anchor.device)
                loaded["state"][p][name] = self._spread(now, p, name, group) if isinstance(now, Tensor) else now

    def _spread(self, value: Tensor, p: Tensor, name: str, group: dict[str, Any]) -> Tensor:
        """Loaded state, spread over processes as its parameter is where it has the same shape."""
        small = name in self.COUNTS or name == "step" or name in set(self.HELD) - self.WHOLE
        return value if small or value.shape != p.shape else sharded.like(value, p)

    def _needed(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the base's state of which a checkpoint holds all or none."""
        return ()

    def _check_base(self, state: dict[str, Any]) -> None:
        """Whether loaded state suits the base."""


def floats(values: Sequence[Tensor]) -> list[float]:
    """Python numbers of 0-d tensors, in one transfer for each device and dtype."""
    kinds: dict[Any, list[int]] = {}
    for i, x in enumerate(values):
        kinds.setdefault((x.device, x.dtype), []).append(i)
    found: dict[int, float] = {}
    for which in kinds.values():
        found.update(zip(which, torch.stack([values[i].detach() for i in which]).tolist(), strict=True))
    return [found[i] for i in range(len(values))]


def run_closure(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
