"""What the drop-in classes share: groups and their checks, lazy state, saving and loading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
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
from .anchor_source import DTYPES, AnchorSource
from .executions import pick
from .names import Exclude, plain

__all__ = ["Anchored"]

#: Keys of a constrained parameter's state, in the order of the columns of ``Layers``.
KEYS = ("deviation", "row_norm", "radius", "radius_exp_avg", "radius_exp_avg_sq", "radius_step")


class Anchored(torch.optim.Optimizer):
    """Base of the drop-in classes: keeps constrained parameters in learned balls around their anchors.

    State of a constrained parameter, made at its first step: ``anchor`` (in its own dtype; none for a zero anchor or
    one in a file), ``deviation`` (c), ``row_norm`` (n), ``radius``, ``radius_exp_avg`` and ``radius_exp_avg_sq``, in
    float32, or float64 for float64 weights, and ``radius_step`` (float32), also after loading. Nothing enters ``state``
    before.

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
        self._exclude = Exclude(exclude)
        super().__init__(params, defaults)
        self._exclude.check_all_matched(self._names())
        self._anchor.check_no_extra(self._names())
        self.execution = self._pick(self.param_groups[0])

    def _pick(self, group: dict[str, Any]) -> str:
        """The execution of a group."""
        return pick(group)

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
        known = self._names()
        names = known[len(known) - len(group["params"]) :]
        for p, name in zip(group["params"], names, strict=True):
            if p.dtype not in DTYPES:
                raise TypeError(
                    f"parameters must be float16, bfloat16, float32 or float64, got {p.dtype} for parameter {name!r}; "
                    "leave frozen and quantised weights out"
                )
        twice = [name for name, count in Counter(plain(str(name)) for name in known).items() if count > 1]
        if twice:
            raise ValueError(f"two parameters are called {twice[0]!r}; names must differ, prefix those of each model")
        self._check_options(group)
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        excluded = self._exclude.of(names, group["params"])
        group["constrained"] = [whole and not out for out in excluded]
        self._anchor.check(names, group["params"], group["constrained"])

    def _check_options(self, group: dict[str, Any]) -> None:
        """What a checkpoint brings along is checked too."""
        check_choice("norm", group["norm"], NORMS)
        check_choice("gradient", group["gradient"], GRADIENTS)
        for name in self.NUMBERS:
            check_number(name, group[name])

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

    def _layers(self) -> list[tuple[dict[str, Any], Layers]]:
        """Each group with its parameters that have a gradient. Every check comes before the first change."""
        if not torch.compiler.is_compiling():
            names = iter(self._names())
            for group in self.param_groups:
                for p in group["params"]:
                    self._check_gradient(p, next(names))
        work = []
        for group in self.param_groups:
            columns: list[list[Tensor]] = [[] for _ in Layers._fields[:-1]]
            moments: list[list[Tensor]] = [[] for _ in self._moments(group)]
            self._init_group(group, *columns, *moments)
            if columns[0]:
                layers = Layers._make([*columns, moments])
                pairs = [_fitting(*row) for row in zip(layers.weights, layers.grads, layers.anchors, strict=True)]
                grads, anchors = ([pair[k] for pair in pairs] for k in range(2))
                work.append((group, layers._replace(grads=grads, anchors=anchors)))
        if self._unmeasured:  # first radii of shards, all at once
            *far, radii = zip(*self._unmeasured, strict=True)
            torch._foreach_copy_(list(radii), sharded.largest_off(list(zip(*far, strict=True))))
            self._unmeasured.clear()
        return work

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> None:
        """Fill the columns of ``Layers``; first, make the state that a first step needs.

        torch.compile runs this method, which it knows by its name, when it traces a step, and guards what it returns.
        """
        names = group.get("param_names") or self._indices(group)
        moments = self._moments(group)
        device = "own" if group.get("capturable") or self._pick(group) == "triton" else "cpu"
        for p, constrained, name in zip(group["params"], group["constrained"], names, strict=True):
            if p.grad is None:
                continue
            self._check_gradient(p, name)
            state = self._state_of(p)
            self._start(p, state, group, name, constrained)
            lean = group.get("lean", False)
            form = (p.stride(), p.dtype, device, len(state), lean)
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
            elif isinstance(value, Tensor) and value.is_floating_point() and key in self._OWN:
                dtype = torch.bfloat16 if lean and key == "deviation" else value.dtype if key == "anchor" else real
                if value.dtype != dtype:
                    state[key] = value = value.to(dtype)
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
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"{type(self).__name__} needs dense gradients, got {grad.layout} for parameter {name!r}; use "
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
        self._loading: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, final: self._loading.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            del self._loading

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fitted, self._unmeasured = {}, []
        if "_loading" in self.__dict__:
            _restore(state, self._loading, self._anchor.device)
            for old, new in zip(self.param_groups, state["param_groups"], strict=True):
                for key in (*self.defaults, "constrained"):  # absent in a checkpoint of the plain base optimizer
                    if key in old:
                        new.setdefault(key, old[key])
                if "param_names" in old:
                    _check_order(old["param_names"], new["param_names"])
                    new["param_names"] = old["param_names"]
                self._check_options(new)
                if [type(value) for value in new["constrained"]] != [bool] * len(new["params"]):
                    raise ValueError(
                        f"the checkpoint's constrained must be a bool for each parameter, got {new['constrained']}"
                    )
                names = new.get("param_names") or self._indices(old)
                for p, name, constrained in zip(new["params"], names, new["constrained"], strict=True):
                    self._check_state(p, name, state["state"].get(p, {}), new)
                    if constrained and "radius" in state["state"].get(p, {}):
                        self._anchor.restore(p, name, state["state"][p], self.state.get(p, {}))
        super().__setstate__(state)

    def _check_state(self, p: Tensor, name: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Loaded state is whole and fits its parameter."""
        missing = [key for key in KEYS if key not in state]
        if len(missing) < len(KEYS) and missing:
            raise ValueError(f"the checkpoint's state of {name!r} lacks {', '.join(missing)}: it is damaged")
        rows = p.shape[:1] if group["norm"] == "mars" and p.ndim >= 2 else (1,)
        for key, value in state.items():
            if isinstance(value, Tensor) and key in self._OWN:
                shape = rows if key == "row_norm" else () if key in KEYS[2:] else p.shape
                if value.shape != torch.Size(shape):
                    raise ValueError(
                        f"the checkpoint's {key} of {name!r} has shape {tuple(value.shape)}, and this parameter needs "
                        f"{tuple(shape)}; is it a checkpoint of this model?"
                    )


def _check_order(here: list[str], there: list[str]) -> None:
    """torch loads by position, whatever the names are."""
    mine, theirs = [plain(name) for name in here], [plain(name) for name in there]
    if mine != theirs and set(mine) == set(theirs):
        first = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"the checkpoint's parameters are in another order: number {first} is {theirs[first]!r} there and "
            f"{mine[first]!r} here; build the optimizer with the parameters in the checkpoint's order"
        )


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
        return sharded.place(grad, w), w0
    if grad.stride() != w.stride() and type(grad) is Tensor:
        grad = _laid_out(grad, w)
    if w0.device != w.device and w0.numel():
        w0 = w0.to(w.device, non_blocking=True)
    return grad, w0


def _laid_out(x: Tensor, w: Tensor) -> Tensor:
    """``x`` with the strides of ``w``: as it is where only dimensions of size 1 differ, else a copy."""
    pairs = zip(x.shape, x.stride(), w.stride(), strict=True)
    if all(size == 1 or mine == theirs for size, mine, theirs in pairs):
        return x.as_strided(w.shape, w.stride())
    return torch.empty_like(w, dtype=x.dtype, device=x.device).copy_(x)


def _restore(loaded: dict[str, Any], saved: dict[str, Any], anchor_device: torch.device | None) -> None:
    """torch casts floating state to the parameter's dtype and device; both were chosen, and are to stay."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in loaded["param_groups"])
    for key, p in zip(ids, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            now = loaded["state"][p][name]
            if isinstance(value, Tensor) and now.dtype != value.dtype:
                now = value.to(now.device)
            if name == "anchor" and anchor_device is not None:
                now = now.to(anchor_device)
            loaded["state"][p][name] = now
