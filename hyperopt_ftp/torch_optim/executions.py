"""Which execution makes a step, and why another cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import foreach, ops, sharded
from ..kernels.layers import Layers, choose
from ..kernels.ops import FUSED, obstacle
from ..kernels.sharded import Part
from . import single

__all__ = ["EXECUTIONS", "Part", "alike", "pick", "project_", "radii_", "step_"]

#: ``step_``, ``radii_`` and ``project_`` by the name that ``opt.execution`` shows; ``sharded`` takes many parts.
EXECUTIONS: dict[str, Any] = {"single": single, "foreach": foreach, "sharded": sharded, **FUSED}


def pick(group: dict[str, Any], strict: bool) -> str:
    """The execution of a group: what its flags ask for, else the best that can and needs no asking (``ops.UNASKED``).

    Args:
        strict: the flags are the optimizer's own. Those of a base that is wrapped ask for the base's kernels, not ours.

    Raises:
        RuntimeError: where ``strict``, for ``fused=True`` that cannot run.
    """
    params, fused, multi = group["params"], group.get("fused"), group.get("foreach")
    if params and (fused or (fused is None and multi is None)):
        why = obstacle(params, asked=strict and bool(fused))
        if why is None:
            return ops.BEST[params[0].device.type][0]
        if fused and strict:
            raise RuntimeError(f"fused=True cannot run: {why}; fused=None takes the best there is")
    if multi is False:
        return "single"
    if any(sharded.is_spread(p) for p in params):
        return "single" if any(sharded.obstacle(p) for p in params) else "sharded"
    if multi is None:
        multi = all(type(p) in (Tensor, torch.nn.Parameter) for p in params)
    return "foreach" if multi else "single"


def step_(name: str, parts: list[Part]) -> None:
    """A whole step of layers of any dtypes and devices."""
    if name == "sharded":
        sharded.step_(parts)
        return
    for part in parts:
        EXECUTIONS[name].step_(*part)


def radii_(name: str, parts: list[Part]) -> list[Tensor]:
    if name == "sharded":
        return sharded.radii_(parts)
    return [EXECUTIONS[name].radii_(part.layers, part.ball, part.amp) for part in parts]


def project_(name: str, parts: list[Part], packed: list[Tensor]) -> None:
    if name == "sharded":
        sharded.project_(parts, packed)
        return
    for part, radii in zip(parts, packed, strict=True):
        EXECUTIONS[name].project_(part.layers, radii, part.ball)


def alike(layers: Layers) -> list[Layers]:
    """Layers of one device and dtype each, of weights and of gradients: what a kernel takes."""
    found: dict[Any, list[int]] = {}
    for i, (w, g) in enumerate(zip(layers.weights, layers.grads, strict=True)):
        found.setdefault((w.device, w.dtype, g.dtype), []).append(i)
    return [layers] if len(found) == 1 else [choose(layers, which) for which in found.values()]
