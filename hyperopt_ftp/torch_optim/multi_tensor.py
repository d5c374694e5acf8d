"""The foreach execution of a step: lists of layers in, ``kernels.foreach`` underneath."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import foreach
from ..tree import working
from .layer import KEYS, Layer

__all__ = ["buckets", "move_and_project", "project", "step_radii", "store", "working_weights"]

#: Moves working weights in place: ``(weights, grads, layers, steps)``.
Move = Callable[[list[Tensor], list[Tensor], list[Layer], Sequence[Any]], None]


#: Elements in a bucket on the CPU. Temporaries of this size come from the heap; those of a whole model are mapped and
#: zeroed anew at each step, which costs more than the arithmetic.
CPU_BUCKET = 2**22


def buckets(layers: list[Layer]) -> list[list[Layer]]:
    """Layers of one device and dtype each: what multi-tensor ops are fast for. On the CPU, not too many at once."""
    found: dict[Any, list[Layer]] = defaultdict(list)
    filled: dict[Any, int] = defaultdict(int)
    for layer in layers:
        place = layer.param.device, layer.param.dtype
        filled[place] += layer.param.numel()
        part = filled[place] // CPU_BUCKET if layer.param.device.type == "cpu" else 0
        found[(*place, part)].append(layer)
    return list(found.values())


def step_radii(layers: list[Layer], group: dict[str, Any], steps: Sequence[Any]) -> Tensor:
    """Radii of the constrained layers for this step, packed; their moments are updated. ``steps`` count from 1."""
    c, n, radii, m, v = _columns(layers)
    return foreach.radius_step_(
        _grads(layers), c, n, radii, m, v, steps,
        radius_lr=group["radius_lr"], kappa=group["kappa"], exact=group["gradient"] == "exact",
    )  # fmt: skip


def project(layers: list[Layer], weights: list[Tensor], packed: Tensor, norm: str) -> None:
    """Project working weights that the base has moved, in place."""
    c, n, radii, _, _ = _columns(layers)
    foreach.project_(weights, _anchors(layers), c, n, radii, packed, norm=norm)


def move_and_project(layers: list[Layer], group: dict[str, Any], steps: Sequence[Any], move: Move) -> None:
    """A whole step for layers of one device and dtype."""
    inside = [i for i, layer in enumerate(layers) if layer.constrained]
    held = [layers[i] for i in inside]
    packed = step_radii(held, group, [steps[i] for i in inside]) if held else None

    weights = working_weights(layers)
    move(weights, _grads(layers), layers, steps)
    if packed is not None:
        project(held, [weights[i] for i in inside], packed, group["norm"])
    store(layers, weights)


def working_weights(layers: list[Layer]) -> list[Tensor]:
    """The parameters themselves, or float32 weights behind 16-bit ones (constrained: c keeps what 16 bits cannot)."""
    params = [layer.param.detach() for layer in layers]
    weights = [working(p) for p in params]
    inside = [i for i, layer in enumerate(layers) if layer.constrained]
    if weights[0].dtype != params[0].dtype and inside:
        held = [layers[i] for i in inside]
        c, n, radii, _, _ = _columns(held)
        masters = foreach.master_weights([params[i] for i in inside], _anchors(held), c, n, radii)
        for i, master in zip(inside, masters, strict=True):
            weights[i] = master
    return weights


def store(layers: list[Layer], weights: list[Tensor]) -> None:
    """Round working weights to the parameters, where they are not the parameters themselves."""
    if weights[0].dtype != layers[0].param.dtype:
        torch._foreach_copy_([layer.param.detach() for layer in layers], weights)


def _grads(layers: list[Layer]) -> list[Tensor]:
    return [layer.grad.detach().to(working(layer.param).dtype) for layer in layers]


def _columns(layers: list[Layer]) -> list[list[Tensor]]:
    """Lists of c, n, gamma and the two moments of gamma."""
    return [[layer.state[key] for layer in layers] for key in KEYS]


def _anchors(layers: list[Layer]) -> list[Tensor | None]:
    pairs = ((layer.state.get("anchor"), layer.state["deviation"].dtype) for layer in layers)
    return [None if anchor is None else anchor.to(dtype) for anchor, dtype in pairs]
