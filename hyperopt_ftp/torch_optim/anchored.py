"""What the drop-in classes share: groups and their checks, lazy state, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from ..ftp import GRADIENTS
from ..hparams import check_choice, check_number
from ..kernels import sharded
from ..kernels.layers import NOTHING, Ball, Layers
from ..optimizers.projected import first_radius
from ..projections import FLOOR, NORMS, row_norm
from ..tree import working
from .anchor_source import AnchorSource
from .checks import (
    KEYS,
    check_checkpoint,
    check_dtype,
    check_order,
    check_params,
    check_shapes,
    check_state,
)
from .executions import pick
from .names import Exclude

__all__ = ["Anchored"]


class Anchored(torch.optim.Optimizer):
    """Base of the drop-in classes: keeps constrained parameters in learned balls around their anchors.

    State of a constrained parameter, made at its first step: ``anchor`` (in its own dtype; none for a zero anchor or
    one in a file), ``deviation`` (c), ``row_norm`` (n), ``radius``, ``radius_exp_avg`` and ``radius_exp_avg_sq``, in
    float32, or float64 for float64 weights, and ``radius_step`` (float32), also after loading; without an anchor,
    ``anchor_fingerprint``. Nothing enters ``state`` before.

    ``execution`` says which execution ran last: ``"single"`` (the pure function, one parameter at a time),
    ``"foreach"``, ``"sharded"``, ``"fused_cpu"`` or ``"triton"``; before the first step, the one that would.
    """

    NUMBERS: tuple[str, ...] = ("radius_lr", "kappa")  #: group entries that are checked against their domains
    COUNTS: frozenset[str] = frozenset({"radius_step"})  #: state that counts steps
    _OWN: frozenset[str] = frozenset((*KEYS, "anchor"))  #: state that this class reads, and not another base
    KEPT = ("_anchor", "_exclude", "execution")  #: attributes that pickle and deepcopy keep beside torch's

    def __init__(self, params: Any, defaults: dict[str, Any], anchor: AnchorSource, exclude: Any) -> None:
        self._anchor = anchor
        self._unmeasured: list[tuple[Tensor, Tensor, str, Tensor]] = []  # weights, anchor, norm and first radius
        self._fitted: dict[Tensor, Any] = {}  # the form of the weights that a parameter's state fits
        self._checked: list[list[Any]] = []  # options of each group when they were last checked
        self._exclude = Exclude(exclude)
        super().__init__(params, defaults)
        self._exclude.check_all_matched(self._names())
        self._anchor.check_no_extra(self._names())
        self.execution = self._pick(self.param_groups[0])

    def _pick(self, group: dict[str, Any]) -> str:
        """The execution of a group."""
        return pick(group, strict=False)

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
        check_params(group["params"], "param_names" in group, self._names())
        self._check_options(group)
        self._check_weights(group)
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        constrained = [whole and not out for out in self._exclude.of(names, group["params"])]
        self._anchor.check(names, group["params"], constrained)
        group["constrained"] = constrained

    def _check_options(self, group: dict[str, Any]) -> None:
        """Of a new group, of one that a checkpoint brings along, and of one that was changed since."""
        check_choice("norm", group["norm"], NORMS)
        check_choice("gradient", group["gradient"], GRADIENTS)
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

    def radii(self) -> dict[Any, float]:
        """Radius of each constrained parameter that has made a step, by name (or index), in units of row norm."""
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        found = {}
        for name, p in zip(self._names(), params, strict=True):
            if p in self.state and "radius" in self.state[p]:
                found[name] = self.state[p]["radius"]
        values = torch.stack([r.detach().double().cpu() for r in found.values()]).tolist() if found else []
        return dict(zip(found, values, strict=True))

    # -- a step -------------------------------------------------------------------------------------------------

    def _layers(self) -> list[tuple[dict[str, Any], str, Layers]]:
        """Each group, its execution, and its parameters that have a gradient. Every check comes before a change."""
        if not torch.compiler.is_compiling():
            self._check_step()
        executions = [self._pick(group) for group in self.param_groups]
        work = []
        for group, execution in zip(self.param_groups, executions, strict=True):
            columns: list[list[Tensor]] = [[] for _ in Layers._fields[:-1]]
            moments: list[list[Tensor]] = [[] for _ in self._moments(group)]
            self._init_group(group, *columns, *moments)
            if columns[0]:
                layers = Layers._make([*columns, moments])
                pairs = [_fitting(*row) for row in zip(layers.weights, layers.grads, layers.anchors, strict=True)]
                grads, anchors = ([pair[k] for pair in pairs] for k in range(2))
                work.append((group, execution, layers._replace(grads=grads, anchors=anchors)))
        if self._unmeasured:  # first radii of shards, all at once
            *far, radii = zip(*self._unmeasured, strict=True)
            torch._foreach_copy_(list(radii), sharded.largest_off(list(zip(*far, strict=True))))
            self._unmeasured.clear()
        if len(self._fitted) > sum(len(group["params"]) for group in self.param_groups):
            self._fitted.clear()  # of parameters that were swapped in for a while
        return work

    def _check_step(self) -> None:
        """All that can be wrong with a step."""
        for i, group in enumerate(self.param_groups):
            if len(group.get("constrained", ())) != len(group["params"]):
                raise RuntimeError(
                    f"the parameters of group {i} were changed by hand; add some by add_param_group (with FTP(base) by "
                    "its own, not the base's), or build a new optimizer"
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

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        """Fill the columns of ``Layers``; first, make the state that a first step needs.

        torch.compile runs this method, which it knows by its name, when it traces a step, and guards what it returns.
        """
        names = group.get("param_names") or self._indices(group)
        moments = self._moments(group)
        on_gpu = bool(group["params"]) and group["params"][0].is_cuda
        device = "own" if group.get("capturable") or (on_gpu and self._pick(group) == "triton") else "cpu"
        for p, constrained, name in zip(group["params"], group["constrained"], names, strict=True):
            if p.grad is None:
                continue
            self._check_gradient(p, name)
            state = self._state_of(p)
            self._start(p, state, group, name, constrained)
            lean = group.get("lean", False)
            form = (p.shape, p.stride(), p.dtype, device, len(state), lean)
            if self._fitted.get(p) != form:
                self._fit(p, state, p.device if device == "own" else torch.device(device), lean)
                self._fitted[p] = form
            held = [state[key] if constrained else NOTHING for key in KEYS]
            w0 = self._anchor.of(p, name, state) if constrained else NOTHING
            row = [p, p.grad, state.get("step", NOTHING), w0, *held, *(state[name] for name in moments)]
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    def _indices(self, group: dict[str, Any]) -> range:
        first = 0
        for other in self.param_groups:
            if other is group:
                break
            first += len(other["params"])
        return range(first, first + len(group["params"]))

    def _fit(self, p: Tensor, state: dict[str, Any], place: torch.device, lean: bool) -> None:
        """Bring loaded state into the form that kernels need: working dtype, the weights' layout, counts in place.

        Checkpoints of torch's optimizers keep moments in the weights' dtype, and old ones plain numbers as steps; a
        model may have changed its memory format.
        """
        real, shape, strides = working(p.detach()).dtype, p.shape, p.stride()
        for key, value in state.items():
            if key in self.COUNTS:
                if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.device != place:
                    state[key] = torch.as_tensor(value, dtype=torch.float32, device=place)
            elif isinstance(value, Tensor) and value.is_floating_point():
                dtype = torch.bfloat16 if lean and key == "deviation" else real
                if value.dtype != dtype and key in self._OWN and key != "anchor":
                    state[key] = value = value.to(dtype)
                # Also the base's own: torch's fused kernels take their layout for granted.
                if value.shape == shape and value.stride() != strides and type(p) in (Tensor, torch.nn.Parameter):
                    state[key] = _laid_out(value, p)

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        return self.state[p]

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the base's state, in the order of ``Layers.moments``."""
        return ()

    def _check_gradient(self, p: Tensor, name: Any) -> None:
        grad = p.grad
        if grad is None:
            return
        check_dtype(p, name)
        form = self._fitted.get(p)
        if form is None or form[0] != p.shape:
            check_shapes(p, name, self.state.get(p, {}))
        if grad.shape != p.shape:
            raise RuntimeError(
                f"the gradient of parameter {name!r} has the shape {tuple(grad.shape)}, and the parameter "
                f"{tuple(p.shape)}; call zero_grad() after weights are resized"
            )
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"FTP needs dense gradients, got {grad.layout} for parameter {name!r}; use "
                "dense embeddings, or another optimizer for that parameter"
            )
        if not grad.is_floating_point():
            raise RuntimeError(f"gradients must be real and floating, got {grad.dtype} for parameter {name!r}")
        if grad.device != p.device:
            raise RuntimeError(
                f"the gradient of parameter {name!r} is on {grad.device}, the parameter on {p.device}; move the model "
                "before the optimizer is built"
            )

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any], name: Any, constrained: bool) -> None:
        """The state that a parameter's first step needs. c = 0, so the first hypergradient is 0."""
        if constrained and "radius" not in state:
            w, norm = p.detach(), group["norm"]
            c = torch.zeros_like(working(w))
            self._anchor.start(p, name, state)
            w0 = self._anchor.of(p, name, state)
            if sharded.is_spread(p):
                n = sharded.spread_rows(p, FLOOR, norm, c.dtype)
                radius = torch.full((), FLOOR, dtype=c.dtype, device=sharded.local(p).device)
                if not self._anchor.is_start:
                    self._unmeasured.append((w, w0, norm, radius))
            else:
                n, radius = row_norm(c, norm), first_radius(w, w0 if w0.numel() else c, norm)
            zeros = (torch.zeros_like(radius), torch.zeros_like(radius), torch.zeros((), dtype=torch.float32))
            state.update(zip(KEYS, (c, n, radius, *zeros), strict=True))
            if group.get("lean"):
                state["deviation"] = c.to(torch.bfloat16)

    # -- saving and loading -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`; with ``save_anchor=False`` without anchors."""
        for name, p in zip(self._names(), chain.from_iterable(g["params"] for g in self.param_groups), strict=True):
            if p in self.state:
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
        self._fitted, self._unmeasured, self._checked = {}, [], []
        if "_loading" in self.__dict__:
            _restore(state, self._loading, self._anchor.device, self.COUNTS | {"step"})
            for old, new in zip(self.param_groups, state["param_groups"], strict=True):
                for key in (*self.defaults, "constrained"):  # absent in a checkpoint of the plain base optimizer
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
                    check_state(p, name, found, new["norm"], self._needed(new), self._OWN, self.COUNTS)
                    if constrained and "radius" in found:
                        self._anchor.restore(p, name, found, self.state.get(p, {}))
            self._check_base(state)
        super().__setstate__(state)

    def _needed(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the base's state of which a checkpoint holds all or none."""
        return ()

    def _check_base(self, state: dict[str, Any]) -> None:
        """Whether loaded state suits the base."""


def ball(group: dict[str, Any]) -> Ball:
    radius_lr, kappa = (x.item() if isinstance(x, Tensor) else x for x in (group["radius_lr"], group["kappa"]))
    return Ball(radius_lr, kappa, group["norm"], group["gradient"] == "exact")


def run_closure(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _fitting(w: Tensor, grad: Tensor, w0: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in the layout of the weights, and in their dtype or working precision; the anchor beside them."""
    grad = grad.resolve_neg()  # a lazy minus sign is not in memory
    if grad.dtype != w.dtype:
        grad = grad.to(working(w).dtype)
    if sharded.is_spread(w):
        grad = sharded.place(grad, w)
    elif grad.stride() != w.stride() and type(grad) is Tensor:
        grad = _laid_out(grad, w)
    if w0.dtype == torch.float64 != w.dtype:
        w0 = w0.float()  # the weights were float64 when they began
    if w0.device != w.device and w0.numel():
        w0 = w0.to(w.device, non_blocking=True)
    return grad, w0


def _laid_out(x: Tensor, w: Tensor) -> Tensor:
    """``x`` with the strides of ``w``: as it is where only dimensions of size 1 differ, else a copy."""
    pairs = zip(x.shape, x.stride(), w.stride(), strict=True)
    if all(size == 1 or mine == theirs for size, mine, theirs in pairs):
        return x.as_strided(w.shape, w.stride())
    return torch.empty_like(w, dtype=x.dtype, device=x.device).copy_(x)


def _restore(
    loaded: dict[str, Any], saved: dict[str, Any], anchor_device: torch.device | None, counts: Collection[str]
) -> None:
    """State in the dtype and device that were chosen, where torch casts it to those of the parameter; spread as the
    parameter is, where it was saved by another number of processes."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = ((group.get("norm", "mars"), p) for group in loaded["param_groups"] for p in group["params"])
    for key, (norm, p) in zip(ids, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            now = loaded["state"][p][name]
            if isinstance(value, Tensor) and now.dtype != value.dtype:
                now = value.to(now.device)
            if name == "anchor" and anchor_device is not None:
                now = now.to(anchor_device)
            is_rows = name == "row_norm"
            if isinstance(now, Tensor) and (is_rows or (now.shape == p.shape and name not in (*KEYS[1:], *counts))):
                now = sharded.like(now, p, norm, is_rows)
            loaded["state"][p][name] = now
