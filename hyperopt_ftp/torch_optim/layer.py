"""One constrained parameter: its FTP state, and the pure execution of a step on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ftp import FTPState, ftp
from ..optimizers.adam import AdamState
from ..optimizers.projected import first_radius
from ..projections import row_norm
from ..tree import working
from ..types import Optimizer

__all__ = ["Layer", "run_pure", "start"]

KEYS = ("deviation", "row_norm", "radius", "radius_exp_avg", "radius_exp_avg_sq")


class Layer(NamedTuple):
    """One parameter at one step."""

    param: Tensor
    grad: Tensor  # negated under maximize
    state: dict[str, Any]
    constrained: bool
    name: Any


def start(layer: Layer, anchor: Tensor | None, norm: str) -> None:
    """State for the first step: c = 0, so the first hypergradient is 0. A zero anchor takes no memory."""
    state, p = layer.state, layer.param.detach()
    c = torch.zeros_like(working(p))
    radius = first_radius(p, c if anchor is None else anchor, norm)
    if anchor is not None:
        state["anchor"] = anchor
    values = (c, row_norm(c, norm), radius, torch.zeros_like(radius), torch.zeros_like(radius))
    state.update(zip(KEYS, values, strict=True))


def run_pure(base: Optimizer, base_state: Any, layer: Layer, count: Tensor, group: dict[str, Any]) -> Any:
    """One step by the pure functions. Writes the parameter and its FTP state in place; returns the base's new state."""
    params, grads, state = {"w": layer.param.detach()}, {"w": layer.grad}, layer.state
    if layer.constrained:
        c, n, radius, m, v = ({"w": state[key]} for key in KEYS)
        anchor = state["anchor"] if "anchor" in state else torch.zeros_like(state["deviation"])
        opt = ftp(base, {"w": anchor}, group["norm"], group["kappa"], group["radius_lr"], group["gradient"])
        full = FTPState(base_state, radius, AdamState(count, m, v, ()), c, n)
        new, full = opt.update(grads, full, params)
        adam = full.radius_opt
        for key, value in zip(
            KEYS, (full.deviation, full.norms, full.radius, adam.exp_avg, adam.exp_avg_sq), strict=True
        ):
            state[key].copy_(value["w"])
        base_state = full.base
    else:
        new, base_state = base.update(grads, base_state, params)
    layer.param.copy_(new["w"])
    return base_state
