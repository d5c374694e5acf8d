"""DTensors beside plain tensors: conversions that are differentiable to any order, which torch's own are not.

The backward of ``DTensor.from_local`` cuts the graph where a derivative is a sum over processes, and ``item()`` of such
a sum gives each process its own part (torch 2.13).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """How a DTensor lies over processes."""

    mesh: Any
    placements: tuple[Any, ...]


def is_dtensor(x: Any) -> bool:
    if type(x) in (Tensor, torch.nn.Parameter) or not isinstance(x, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def layout(x: Any) -> Layout | None:
    """How ``x`` lies over processes; ``None`` for what is no DTensor."""
    return Layout(x.device_mesh, tuple(x.placements)) if is_dtensor(x) else None


def local(x: Any) -> Any:
    """This process's shard; what is no DTensor as it is."""
    return x.to_local() if is_dtensor(x) else x


def whole(x: Any) -> Any:
    """All of a DTensor, as a plain tensor, on each process; anything else as it is."""
    return _Whole.apply(x) if is_dtensor(x) else x


def replicated(x: Any, mesh: Any) -> Any:
    """A plain tensor, which is the same on each process, as a DTensor; anything else as it is."""
    return _Replicated.apply(x, mesh) if isinstance(x, Tensor) and not is_dtensor(x) else x


def to_layout(x: Any, at: Layout | None) -> Any:
    """A tensor, the same on each process where it is plain, in that layout; ``None``: a plain one."""
    if at is None:
        return whole(x)
    x = replicated(x, at.mesh)
    return x if tuple(x.placements) == at.placements else x.redistribute(at.mesh, at.placements)


def without_partials(x: Any) -> Any:
    """A DTensor without sums that are still to be made; anything else as it is."""
    if not is_dtensor(x) or not any(p.is_partial() for p in x.placements):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])


def everywhere(x: Any) -> Any:
    """A DTensor as one that each process has all of; anything else as it is."""
    if not is_dtensor(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate()] * x.device_mesh.ndim)


def in_layout_of(x: Any, w: Any) -> Any:
    """A tensor of the shape of ``w`` in its layout."""
    return to_layout(x, layout(w))


class _Whole(torch.autograd.Function):
    """With :class:`_Replicated`, each the transpose of the other."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        ctx.mesh = x.device_mesh
        return x.full_tensor()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return replicated(cotangent, ctx.mesh)


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Any) -> Any:
        from torch.distributed.tensor import DTensor, Replicate

        return DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return whole(cotangent), None
