"""State of parameters by its specs: made at a first step, brought into the form that a step needs, checked, sharded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...anchored.projections import rows
from ...anchored.rule import Rule, RuleState, Spec
from ...dtensors import is_dtensor, local, whole
from ...kernels import sharded
from ...tree import working
from ...types import Norm


class Columns(NamedTuple):
    """The tensors of many parameters, one entry a parameter in each list; ``ABSENT`` where it has none."""

    weights: list[Tensor]
    grads: list[Tensor]
    steps: list[Tensor]  # of the base
    anchors: list[Tensor]
    state: list[list[Tensor]]  # columns of the rule, in the order of its specs
    moments: list[list[Tensor]]  # columns of the base


def choose(columns: Columns, which: Sequence[int]) -> Columns:
    first = [[column[i] for i in which] for column in columns[:4]]
    rest = [[[column[i] for i in which] for column in many] for many in columns[4:]]
    return Columns._make([*first, *rest])


def is_plain(p: Tensor) -> bool:
    """Whether strides are those of memory: no tensor subclass, and not sparse, as the moments of a base may be."""
    return type(p) in (Tensor, torch.nn.Parameter) and p.layout == torch.strided


def shapes(specs: Iterable[Spec], p: Tensor, norm: Norm) -> dict[str, torch.Size]:
    by_kind = {"weights": p.shape, "rows": rows(p, norm), "scalar": torch.Size(()), "count": torch.Size(())}
    return {spec.name: by_kind[spec.kind] for spec in specs}


def blank(specs: Iterable[Spec], p: Tensor, norm: Norm) -> dict[str, Tensor]:
    """State before the first step of a parameter at its anchor, sharded as the parameter is."""
    made = {}
    for name, kind, fill in specs:
        if kind == "weights":
            made[name] = torch.full_like(working(p.detach()), fill)
        elif kind == "rows":
            made[name] = sharded.full_rows(p, fill, norm)
        else:
            dtype = torch.float32 if kind == "count" else working(p.detach()).dtype
            device = torch.device("cpu") if kind == "count" else local(p).device
            made[name] = torch.full((), fill, dtype=dtype, device=device)
    return made


def off(rule: Rule, p: Tensor, w0: Tensor) -> RuleState:
    """Entries that differ from their fill because the parameter starts off its anchor (empty: zero)."""
    w = working(p.detach())
    found = rule.off(whole(w - w0.to(w) if w0.numel() else w)) if rule.off else {}
    kinds = {spec.name: spec.kind for spec in rule.specs}
    return {name: shard(value, p, kinds[name], rule.norm) for name, value in found.items()}


def shard(value: Any, p: Tensor, kind: str | None, norm: Norm) -> Any:
    """Loaded state, sharded as its parameter is; ``kind`` is ``None`` for what the base keeps beside its step."""
    if not isinstance(value, Tensor) or kind in ("scalar", "count"):
        return value
    if kind == "rows":
        return sharded.in_form_of(value, p, norm, is_rows=True)
    return sharded.in_form_of(value, p) if value.shape == p.shape else value


def fit(p: Tensor, state: dict[str, Any], kinds: dict[str, str], place: torch.device, lean: bool) -> None:
    """Bring loaded state into the form that kernels need: working dtype, the weights' layout, counts in place.

    Checkpoints of torch's optimizers keep moments in the weights' dtype, and old ones plain numbers as steps; a model
    may have changed its memory format.

    Args:
        p: the parameter.
        state: all of its state, the base's too.
        kinds: of the entries that are ours, by name.
        place: device of counts.
        lean: keep the deviation in bfloat16.
    """
    real, shape = working(p.detach()).dtype, p.shape
    for key, value in state.items():
        if kinds.get(key) == "count":
            if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.device != place:
                state[key] = torch.as_tensor(value, dtype=torch.float32, device=place)
        elif isinstance(value, Tensor) and value.is_floating_point():
            dtype = torch.bfloat16 if lean and key == "deviation" else real
            if value.dtype != dtype and key in kinds:
                state[key] = value = value.to(dtype)
            # Also the base's own: torch's fused kernels take their layout for granted.
            if value.shape == shape and is_plain(p) and is_plain(value) and value.stride() != p.stride():
                state[key] = _laid_out(value, p)


def fitting(columns: Columns) -> Columns:
    """Gradients in the layout of the weights, and in their dtype or working precision; anchors beside them."""
    grads = [_gradient(w, grad) for w, grad in zip(columns.weights, columns.grads, strict=True)]
    anchors = [_anchor(w, w0) for w, w0 in zip(columns.weights, columns.anchors, strict=True)]
    return columns._replace(grads=grads, anchors=anchors)


def _gradient(w: Tensor, grad: Tensor) -> Tensor:
    grad = grad.resolve_neg()  # a lazy minus sign is not in memory
    if grad.dtype != w.dtype:
        grad = grad.to(working(w).dtype)
    if is_dtensor(w):
        return sharded.place(grad, w)
    return _laid_out(grad, w) if grad.stride() != w.stride() and type(grad) is Tensor else grad


def _anchor(w: Tensor, w0: Tensor) -> Tensor:
    if w0.dtype == torch.float64 != w.dtype:
        w0 = w0.float()  # the weights were float64 when they began
    if w0.numel() and w0.device != w.device:
        w0 = w0.to(w.device, non_blocking=True)
    # One in a file may lie otherwise than weights in channels_last.
    return _laid_out(w0, w) if w0.numel() and w0.stride() != w.stride() and is_plain(w) else w0


def _laid_out(x: Tensor, w: Tensor) -> Tensor:
    """``x`` with the strides of ``w``: as it is where only dimensions of size 1 differ, else a copy."""
    pairs = zip(x.shape, x.stride(), w.stride(), strict=True)
    if all(size == 1 or mine == theirs for size, mine, theirs in pairs):
        return x.as_strided(w.shape, w.stride())
    return torch.empty_like(w, dtype=x.dtype, device=x.device).copy_(x)
