"""Which execution makes a step, and why another cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import foreach, ops
from ..kernels.layers import Layers, choose
from ..kernels.ops import FUSED, obstacle
from . import single

__all__ = ["EXECUTIONS", "alike", "pick"]

#: ``step_``, ``radii_`` and ``project_`` by the name that ``opt.execution`` shows.
EXECUTIONS: dict[str, Any] = {"single": single, "foreach": foreach, **FUSED}


def pick(group: dict[str, Any]) -> str:
    """The execution of a group: what its flags ask for, else the best that can."""
    params, fused, multi = group["params"], group.get("fused"), group.get("foreach")
    if (fused or (fused is None and multi is None)) and obstacle(params) is None:
        return ops.BEST[params[0].device.type][0]
    if multi is None:
        multi = all(type(p) in (Tensor, torch.nn.Parameter) for p in params)
    return "foreach" if multi else "single"


def alike(layers: Layers) -> list[Layers]:
    """Layers of one device and dtype each, of weights and of gradients: what a kernel takes."""
    found: dict[Any, list[int]] = {}
    for i, (w, g) in enumerate(zip(layers.weights, layers.grads, strict=True)):
        found.setdefault((w.device, w.dtype, g.dtype), []).append(i)
    return [layers] if len(found) == 1 else [choose(layers, which) for which in found.values()]
