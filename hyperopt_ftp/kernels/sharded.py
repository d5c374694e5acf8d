"""Execution for DTensors whose rows are sharded over processes (FSDP2, HSDP): each does its part, and two collectives a
step, however many layers there are, join them.

What a process cannot know alone are the hypergradient, a sum over all rows, and the largest norm, a maximum over them;
or, where a layer is one row, its norm, a sum over the pieces. Each process gathers the others' parts and adds them up
in the same order, so that radii are equal to the last bit everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dtensors import is_dtensor, local
from . import foreach
from .layers import SGD, AdamW, Amp, Ball, Layers, choose, working_dtype

#: Layers of one dtype and device, and the numbers of their step.
Part = tuple[Layers, AdamW | SGD | None, Ball, Amp]


def step_(parts: Sequence[Part]) -> None:
    """A whole step of all parts, as ``foreach.step_``."""
    shards = [_Shards(part) for part in parts]
    packed = _new_radii(shards)
    for s in shards:
        torch._foreach_add_(s.layers.steps, 1.0)
        assert s.base is not None
        for bucket in foreach.buckets(s.layers):
            foreach.move_(bucket, foreach.gradients(bucket, s.amp), s.base, s.ball)
    _settle(shards, packed)


def radii_(parts: Sequence[Part]) -> list[Tensor]:
    """As ``foreach.radii_``, for each part."""
    return _new_radii([_Shards(part) for part in parts])


def project_(parts: Sequence[Part], packed: Sequence[Tensor]) -> None:
    """As ``foreach.project_``, for each part."""
    shards = [_Shards(part) for part in parts]
    for s in shards:
        for bucket in foreach.buckets(s.layers):
            foreach.deviate_(bucket, foreach.working_weights(bucket), s.ball)
    _settle(shards, packed)


class _Shards:
    """This process's shards of a part, and how those of its constrained layers make a whole."""

    def __init__(self, part: Part) -> None:
        layers, self.base, self.ball, self.amp = part
        columns = [[local(x) for x in column] for column in layers[:-1]]
        moments = [[local(x) for x in column] for column in layers.moments]
        self.layers = Layers._make([*columns, moments])
        held = [i for i, radius in enumerate(layers.radii) if radius.numel()]
        self.inside = choose(self.layers, held)
        self.groups = [_group(layers.weights[i]) for i in held]
        #: Whether each process has a piece of the layer's one row.
        self.cut = [
            group is not None and not _has_rows(layers.weights[i], self.ball.norm)
            for i, group in zip(held, self.groups, strict=True)
        ]


def _new_radii(shards: list[_Shards]) -> list[Tensor]:
    """The first collective: hypergradients are sums, over rows or over the pieces of one."""
    found = []
    for s in shards:
        rows = [
            foreach.hypergradients(bucket, foreach.gradients(bucket, s.amp), s.ball)
            for bucket in foreach.buckets(s.inside)
        ]
        found.append(torch.cat(rows) if rows else torch.empty(0))
    whole = _joined(shards, found, lambda every, _: every.sum(0))
    packed = []
    for s, h in zip(shards, whole, strict=True):
        if s.inside.radius_steps:
            torch._foreach_add_(s.inside.radius_steps, 1.0)
        packed.append(foreach.radii_along(s.inside, h, s.ball))
    return packed


def _settle(shards: list[_Shards], packed: Sequence[Tensor]) -> None:
    """The second collective: the largest norm of rows, or the norm of pieces."""
    for s, gammas, top in zip(shards, packed, _joined_tops(shards), strict=True):
        for n, is_cut, whole in zip(s.inside.norms, s.cut, top, strict=True):
            if is_cut:
                n.fill_(whole)
        foreach.settle_(s.inside, gammas, top)


# Joining


def _joined_tops(shards: list[_Shards]) -> list[Tensor]:
    """The largest norm of each constrained layer (without 1e-8)."""
    values, rows = [], []
    for s in shards:
        top = foreach.largest(s.inside.norms)
        cut = torch.tensor(s.cut, dtype=torch.bool, device="cpu").to(top.device, non_blocking=True)
        rows.append(~cut)
        values.append(torch.where(cut, top**2, top) if s.ball.norm == "l2" else top)
    is_row = torch.cat([row for row in rows if len(row)] or rows)
    joined = _joined(shards, values, lambda every, at: torch.where(is_row[at], every.amax(0), every.sum(0)))
    return [
        torch.where(row, top, top.sqrt()) if s.ball.norm == "l2" else top
        for s, row, top in zip(shards, rows, joined, strict=True)
    ]


def _joined(shards: list[_Shards], values: Sequence[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Each constrained layer's value joined over its group; that of a whole layer as it is.

    Args:
        shards: of the parts.
        values: of each part, shape (layers,).
        join: from values of shape (processes, some layers), and these layers' positions among all, to (some layers,).
    """
    flat = [group for s in shards for group in s.groups]
    if not flat:
        return list(values)
    packed = torch.cat([value.double() for value in values if len(value)])
    for group in dict.fromkeys(group for group in flat if group is not None):  # in one order everywhere
        at = torch.tensor([i for i, other in enumerate(flat) if other is group], device="cpu").to(
            packed.device, non_blocking=True
        )
        mine = packed[at]
        every = mine.new_empty(group.size() * len(at))
        gather = getattr(torch.distributed, "all_gather_single", None)  # its name in newer torch
        (gather or torch.distributed.all_gather_into_tensor)(every, mine, group=group)
        packed[at] = join(every.view(group.size(), -1), at)
    parts = packed.split([len(value) for value in values])
    return [part.to(value.dtype) for part, value in zip(parts, values, strict=True)]


# DTensors


def can_step(p: Any) -> bool:
    """Whether shards of ``p`` can step by themselves: rows, sharded over one dimension of the mesh, or all of it."""
    if not is_dtensor(p):
        return type(p) in (Tensor, torch.nn.Parameter)
    from torch.distributed.tensor import Replicate, Shard

    cut = [placement for placement in p.placements if type(placement) is not Replicate]
    return not cut or (len(cut) == 1 and type(cut[0]) is Shard and cut[0].dim == 0)


def _group(p: Any) -> Any:
    """The processes over which ``p`` is cut; ``None`` where each has all of it."""
    if is_dtensor(p) and can_step(p):
        for dim, placement in enumerate(p.placements):
            if placement.is_shard() and p.device_mesh.size(dim) > 1:
                return p.device_mesh.get_group(dim)
    return None


def _has_rows(p: Tensor, norm: str) -> bool:
    """Whether a norm is of less than the whole tensor."""
    return norm == "mars" and p.ndim >= 2


def place(source: Any, p: Any) -> Tensor:
    """``source``, sharded in some way or whole on each process, sharded as ``p`` is; as it is where ``p`` is not."""
    if not is_dtensor(p):
        return source
    from torch.distributed.tensor import distribute_tensor

    if is_dtensor(source):
        same = source.placements == p.placements and source.device_mesh == p.device_mesh
        return source if same else source.redistribute(p.device_mesh, p.placements)
    # Each process cuts its own shard out: nothing is sent.
    return distribute_tensor(source.to(p.device), p.device_mesh, p.placements, src_data_rank=None)


def in_form_of(value: Any, p: Any, norm: str = "mars", is_rows: bool = False) -> Tensor:
    """State that was saved whole or in other shards, in the form that ``p`` needs.

    Args:
        value: of the shape of ``p``, or where ``is_rows`` a value for each of its rows.
        p: a plain tensor or a DTensor.
        norm: ``"mars"`` or ``"l2"``.
        is_rows: whether it is row norms.
    """
    cut = is_dtensor(p) and (not is_rows or (_has_rows(p, norm) and _group(p) is not None))
    if cut != is_dtensor(value):
        return place(value, p) if cut else value.full_tensor()
    return value


def full_rows(p: Any, value: float, norm: str) -> Tensor:
    """A value for each row, sharded like the rows of ``p``; a plain tensor where every process has all of them."""
    rows = p.shape[0] if _has_rows(p, norm) else 1
    if not _has_rows(p, norm) or _group(p) is None:
        return torch.full((rows,), value, dtype=working_dtype(p), device=local(p).device)
    from torch.distributed.tensor import DTensor

    mine = torch.full((local(p).shape[0],), value, dtype=working_dtype(p), device=local(p).device)
    return DTensor.from_local(mine, p.device_mesh, p.placements, run_check=False, shape=torch.Size([rows]), stride=(1,))
