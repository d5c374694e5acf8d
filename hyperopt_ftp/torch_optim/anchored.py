"""What the drop-in classes share: groups and their checks, lazy state, executions, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..ftp import GRADIENTS
from ..hparams import check_choice, check_number
from ..projections import NORMS
from .anchor_source import AnchorSource
from .layer import Layer, start
from .names import Exclude

__all__ = ["Anchored"]


class Anchored(torch.optim.Optimizer):
    """Base of the drop-in classes: keeps constrained parameters in learned balls around their anchors.

    State of a constrained parameter, made at its first step: ``anchor`` (in its own dtype; none for a zero anchor),
    ``deviation`` (c), ``row_norm`` (n), ``radius``, ``radius_exp_avg`` and ``radius_exp_avg_sq``, in float32, or
    float64 for float64 weights, also after loading. Nothing enters ``state`` before.

    ``execution`` says which execution ran last: ``"single"`` (the pure function, one parameter at a time) or
    ``"foreach"``; before the first step, the one that would.
    """

    STEP = "step"  #: key of a parameter's own step count
    NUMBERS: tuple[str, ...] = ("radius_lr", "kappa")  #: group entries that are checked against their domains
    KEPT = ("_anchor", "_exclude", "execution")  #: attributes that pickle and deepcopy keep beside torch's

    def __init__(self, params: Any, defaults: dict[str, Any], anchor: Any, exclude: Any) -> None:
        self._anchor = AnchorSource(anchor)
        self._exclude = Exclude(exclude)
        super().__init__(params, defaults)
        self._exclude.check_all_matched(self._names())
        self._anchor.check_no_extra(self._names())
        self.execution = self._pick_execution(self.param_groups[0])

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
        for p in group["params"]:
            if not p.is_floating_point():
                raise TypeError(f"parameters must be floating-point, got one of shape {tuple(p.shape)} and {p.dtype}")
        check_choice("norm", group["norm"], NORMS)
        check_choice("gradient", group["gradient"], GRADIENTS)
        for name in self.NUMBERS:
            check_number(name, group[name])
        names, whole = group.get("param_names"), group.get("constrained", True)
        if not isinstance(whole, bool):
            raise TypeError(f"a group's constrained must be True or False, got {whole!r}")
        excluded = self._exclude.of(names, group["params"])
        group["constrained"] = [whole and not out for out in excluded]
        self._anchor.check(names, group["params"], group["constrained"])

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

    def _layers(self) -> list[tuple[dict[str, Any], list[Layer]]]:
        """Each group with its parameters that have a gradient. Every check comes before the first change."""
        names, work = iter(self._names()), []
        for group in self.param_groups:
            layers = []
            for p, constrained in zip(group["params"], group["constrained"], strict=True):
                name, grad = next(names), p.grad
                if grad is None:
                    continue
                if grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} needs dense gradients, got {grad.layout} for parameter {name!r}; use "
                        "dense embeddings, or another optimizer for that parameter"
                    )
                if not grad.is_floating_point():
                    raise RuntimeError(f"gradients must be real and floating, got {grad.dtype} for parameter {name!r}")
                grad = grad.neg() if group.get("maximize") else grad
                layers.append(Layer(p, grad, self.state.get(p, {}), constrained, name))
            if layers:
                work.append((group, layers))
        return work

    def _start(self, layer: Layer, group: dict[str, Any]) -> None:
        """The state that a parameter's first step needs."""
        state = layer.state
        if self.STEP not in state:
            device = layer.param.device if group.get("capturable") else "cpu"
            state[self.STEP] = torch.zeros((), dtype=torch.float32, device=device)
        if layer.constrained and "radius" not in state:
            start(layer, self._anchor.make(layer.param, layer.name), group["norm"])

    def _pick_execution(self, group: dict[str, Any]) -> str:
        wanted = group.get("foreach")
        if wanted is None:
            wanted = all(type(p) in (Tensor, torch.nn.Parameter) for p in group["params"])
        return "foreach" if wanted else "single"

    def _steps(self, layers: list[Layer], group: dict[str, Any]) -> Sequence[Any]:
        """The parameters' own step counts: numbers, or tensors where a step must do without numbers."""
        counts = [layer.state[self.STEP] for layer in layers]
        return [t.double() for t in counts] if group.get("capturable") else [t.item() for t in counts]

    # -- saving and loading -------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.load_state_dict`, but every tensor keeps the dtype it was saved in."""
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
        if "_loading" in self.__dict__:
            _restore_dtypes(state, self._loading)
            for old, new in zip(self.param_groups, state["param_groups"], strict=True):
                for key in (*self.defaults, "constrained"):  # absent in a checkpoint of the plain base optimizer
                    new.setdefault(key, old[key])
        super().__setstate__(state)


def run_closure(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _restore_dtypes(loaded: dict[str, Any], saved: dict[str, Any]) -> None:
    """torch casts floating state to the parameter's dtype; the radius of a 16-bit weight must stay float32."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in loaded["param_groups"])
    for key, p in zip(ids, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            now = loaded["state"][p][name]
            if isinstance(value, Tensor) and now.dtype != value.dtype:
                loaded["state"][p][name] = value.to(now.device)
