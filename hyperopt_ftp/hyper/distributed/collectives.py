"""Differentiable collectives between what is the same on all processes and what is each one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ... import tree
from ...calls import warn_caller
from ..core.torch_private import outside_transforms, under_transform

#: What a loss may be of; in a process's row of the table by its place here, or ``_FAILED``.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FAILED = -1


@dataclass(frozen=True)
class Team:
    """A group of processes."""

    group: dist.ProcessGroup | None  # None: all

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The maximum of each number over the processes, so that all decide alike."""
        self.check()
        place = None if dist.get_backend(self.group) == "gloo" else torch.accelerator.current_accelerator()
        with outside_transforms():
            mine = torch.tensor(numbers, dtype=torch.int64, device=place)
            self._together("agreeing", lambda: dist.all_reduce(mine, dist.ReduceOp.MAX, self.group))
        return mine.tolist()

    def total(self, vector: Tensor) -> Tensor:
        """Replace a vector by its sum over all processes, in place."""
        self._together("adding up a derivative", lambda: dist.all_reduce(vector, group=self.group))
        return vector

    def table(self, row: Tensor) -> Tensor:
        rows = row.new_empty((dist.get_world_size(self.group) * row.numel(),))
        # Named anew by torch 2.13.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        self._together("a value of the loss", lambda: gather(rows, row, group=self.group))
        return rows.view(-1, row.numel())

    def _together(self, what: str, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            rank, count = dist.get_rank(self.group), dist.get_world_size(self.group)
            raise RuntimeError(
                f"process {rank} of {count} has lost the others of data_parallel, in {what}: one of them has ended, or "
                f"failed, and says why; or they call the loss, or differentiate it, in another order ({error})"
            ) from error

    def check(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "data_parallel needs a process group: call torch.distributed.init_process_group(), and start the "
                "processes by torchrun"
            )
        if dist.get_rank(self.group) < 0:
            raise RuntimeError("this process is not in the group that data_parallel was given")


def zero_like(tensors: Sequence[Tensor], *more: Tensor) -> Tensor:
    """A zero in the dtype of the first one. It has a vmap batch if any has, so that all processes agree."""
    zero = tensors[0].new_zeros(())
    if under_transform():
        zero = sum((x.new_zeros((), dtype=zero.dtype) for x in (*tensors, *more)), start=zero)
    return zero


class Copy(torch.autograd.Function):
    """The copy of what is the same on all processes to each one's own; its transpose is :class:`Total`."""

    @staticmethod
    def forward(team: Team, *shared: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in shared)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.team = inputs[0]
        ctx.like = [zero_like([x]).expand(x.shape) for x in output]
        ctx.least = min(range(len(output)), key=lambda i: output[i].numel())
        ctx.save_for_backward(output[ctx.least])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        mine = list(cotangents)
        if under_transform():
            mine[ctx.least] = mine[ctx.least] + zero_like([mine[ctx.least]], *ctx.like)
        return (None, *Total.apply(ctx.team, *ctx.saved_tensors, *mine))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return Copy.apply(ctx.team, *(x if t is None else t for x, t in zip(ctx.like, tangents[1:], strict=True)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return Copy.apply(*args), in_dims[1:]


class Total(torch.autograd.Function):
    """The sum over processes of what is each one's own; its transpose is :class:`Copy`.

    The second argument, one of the copies, has no part in the sum. It makes the sum depend on the copies on every
    process. Otherwise a process whose own derivative is constant would not take part in the next collective.
    """

    @staticmethod
    def forward(team: Team, copy: Tensor, *mine: Tensor) -> tuple[Tensor, ...]:
        wide = reduce(torch.promote_types, (tree.working(x).dtype for x in mine))
        flat = torch.cat([x.reshape(-1).to(mine[0].device, wide) for x in mine])
        parts = team.total(flat).split([x.numel() for x in mine])
        return tuple(part.view(x.shape).to(x) for part, x in zip(parts, mine, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.team, copy, *_ = inputs
        ctx.copy = zero_like([copy]).expand(copy.shape)
        ctx.like = [zero_like([x]).expand(x.shape) for x in output]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return (None, ctx.copy + zero_like([ctx.copy], *cotangents), *Copy.apply(ctx.team, *cotangents))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        mine = [x if t is None else t for x, t in zip(ctx.like, tangents[2:], strict=True)]
        return Total.apply(ctx.team, min(mine, key=Tensor.numel), *mine)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        team, copy, *mine = args
        rows = [_rows(x, d, info.batch_size) for x, d in zip(mine, in_dims[2:], strict=True)]
        return Total.apply(team, copy, *rows), (0,) * len(mine)


class Whole(torch.autograd.Function):
    """The weighted sum of the processes' losses, and this one's weight; checks that all have the same params.

    ``size`` is ``None`` if the loss has failed, which is an error in all processes. ``copy`` has no part in the sum;
    see :class:`Total`.
    """

    @staticmethod
    def forward(
        team: Team, mean: bool, size: float | None, value: Tensor, copy: Tensor, *shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = value.reshape(-1).double().view(torch.int64)
        kind = _FAILED if size is None else _DTYPES.index(value.dtype)
        head = torch.tensor([size or 0.0], dtype=torch.float64).view(torch.int64).tolist()
        head = torch.tensor([kind, *head], device=value.device)
        table = team.table(torch.cat([head, _print_of(shared).reshape(1), values]))
        heads = table[:, :3].cpu()
        _check_heads(heads)
        sizes, rows = heads[:, 1].contiguous().view(torch.float64), table[:, 3:].contiguous().view(torch.float64)
        bad = (~rows.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            warn_caller(f"data_parallel: the loss of {_processes(bad)} is not finite")
        weights = sizes / sizes.sum() if mean else torch.ones_like(sizes)
        whole = (weights.to(rows.device).unsqueeze(1) * rows).sum(0)
        # An empty shard's zero may be of another dtype than the losses.
        whole = whole.view(value.shape).to(reduce(torch.promote_types, (_DTYPES[i] for i in heads[sizes > 0, 0])))
        return whole, weights[dist.get_rank(team.group)].to(whole)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.team, _, _, value, copy, *shared = inputs
        ctx.shared, ctx.dtype = len(shared), value.dtype
        ctx.copy = zero_like([copy]).expand(copy.shape)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        mine = Copy.apply(ctx.team, cotangents[0])[0] * weight
        return None, None, None, mine.to(ctx.dtype), ctx.copy + (0 * mine).sum().to(ctx.copy), *(None,) * ctx.shared

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        tangent = tangents[3].to(weight)
        tangent = tangent + zero_like([tangent], *(t for t in tangents[4:] if t is not None))
        return Total.apply(ctx.team, tangent, tangent * weight)[0], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        team, mean, size, value, *more = args
        return Whole.apply(team, mean, size, _rows(value, in_dims[3], info.batch_size), *more), (0, None)


def _rows(x: Tensor, dim: int | None, count: int) -> Tensor:
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def _print_of(tensors: Sequence[Tensor]) -> Tensor:
    """A number that depends on every bit of the params."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [x.detach().view(kinds[x.element_size()]).sum() for x in tensors]
    return torch.stack([(2 * i + 1) * x.to(sums[0].device) for i, x in enumerate(sums)]).sum()


def _check_heads(heads: Tensor) -> None:
    failed = (heads[:, 0] == _FAILED).nonzero().flatten().tolist()
    if failed:
        raise RuntimeError(f"the loss of data_parallel has failed in {_processes(failed)}, whose own error says why")
    other = (heads[:, 2] != heads[0, 2]).nonzero().flatten().tolist()
    if other:
        raise RuntimeError(
            f"data_parallel: the params, or the loss's hparams, of {_processes(other)} are not those of process 0. All "
            "have to begin with the same numbers: set one seed before the model is made, or broadcast it; give each "
            "process a seed of its own after that. Or they have gone apart, by an outer loss that is not "
            "data-parallel, or by other hparams"
        )
    if not heads[:, 1].any():
        raise RuntimeError("data_parallel: the shards of all processes are empty")


def _processes(ranks: Sequence[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
