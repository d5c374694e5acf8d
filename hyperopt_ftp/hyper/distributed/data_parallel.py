"""The loss on the whole batch, differentiable to any order, from a loss on one process's shard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ... import tree
from ...calls import check_choice, explained
from ...dtensors import whole
from ...types import Params
from ..core.leaves import combine, floats
from ..core.torch_private import under_transform, values_of
from ..guards.call_arguments import argument_counts, check_scalar, refuse_complex
from ..guards.graphs import captured_leaf
from .collectives import Copy, Team, Whole, zero_like

#: What a loss makes of the examples of a batch.
Reduction: TypeAlias = Literal["mean", "sum"]


@explained("the loss comes first: data_parallel(loss)")
def data_parallel(
    loss: Callable[..., Tensor],
    group: dist.ProcessGroup | None = None,
    *,
    reduction: Reduction = "mean",
    size: Callable[[Any], float] | None = None,
) -> DataParallel:
    """The loss on the whole batch, from a loss on this process's shard of it.

    With ``L_r`` the loss of process r on its shard and ``n_r`` the size of that shard::

        L = sum_r w_r L_r,   w_r = n_r / sum_q n_q   (reduction "mean"),   w_r = 1   ("sum")

    Params and the loss's hparams must be the same on all processes. Values, and derivatives in them of any order, are
    then equal on all processes to the last bit. The derivative in a batch is that of ``L`` in this process's shard.

    Args:
        loss: ``loss(params, batch) -> scalar`` or ``loss(params, batch, loss_hparams) -> scalar``: a training loss, or
            the outer loss of :func:`bilevel` or :func:`tpgm`, on this process's shard, unless that is empty.
        group: of ``torch.distributed``; ``None``: all processes.
        reduction: ``"mean"``: the loss is a mean over the examples of a batch, plus a penalty on the params if you
            like. ``"sum"``: it is a sum over them.
        size: for ``"mean"``: ``size(batch) -> number`` of examples (or tokens) in the shard. ``None``: the length of
            its tensors, which must be the same for all.

    Returns:
        A loss with the same arguments. All processes must call it equally often and differentiate it alike.

    Raises:
        TypeError: a loss that cannot be called.
        ValueError: a loss of the params alone, whose weight is unknown; an unknown ``reduction``. When called: a batch
            without one length; a loss that closes over a tensor that requires grad (under a ``torch.func`` transform it
            counts as a constant). In :func:`train`: numbers of batches that differ between processes.
        RuntimeError: when called, no process group; params that differ between processes; another process has failed in
            its loss, or has ended.

    Warns:
        UserWarning: the loss of a process, named by its rank, is not finite.

    A value is one all-gather of 32 bytes for each process; a gradient in params and hparams, and a Hessian-vector
    product, are one all-reduce. 16-bit numbers are summed in float32.

    >>> import torch, torch.distributed as dist, hyperopt_ftp as hft
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> def loss(p, x): return ((p - x) ** 2).mean()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(4, dtype=torch.float64)] * 3
    >>> whole = hft.data_parallel(loss)
    >>> value, grads, _ = hft.hypergradient(hft.sgd(lr=0.1), whole, lambda p: whole(p, data[0]), w, data, over="lr")
    >>> round(grads["lr"].item(), 6)                    # d (1 - 2 lr)^6 / d lr = -12 (1 - 2 lr)^5
    -3.93216
    >>> dist.destroy_process_group()
    """
    if not callable(loss) or isinstance(loss, torch.nn.Module):
        raise TypeError(f"loss must be a function loss(params, batch), as of_module makes, got {type(loss).__name__}")
    if isinstance(loss, DataParallel):
        raise TypeError("loss is data-parallel already: it would be averaged twice")
    least, most = argument_counts(loss)
    if most < 2 or least > 3:
        raise ValueError(
            "loss must take (params, batch), or (params, batch, loss_hparams), by position; this one takes "
            f"{most if most < 2 else least}. Its batch tells how much a process counts: instead of lambda p: "
            "loss(p, held_out) give loss itself, and lambda p: whole(p, held_out) later"
        )
    check_choice("reduction", reduction, get_args(Reduction))
    if size is not None and not callable(size):
        raise TypeError(f"size must be a function of the batch, got {size!r}; for instance lambda batch: len(batch[0])")
    return DataParallel(loss, group, reduction, size)


@dataclass(frozen=True)
class DataParallel:
    """What :func:`data_parallel` returns."""

    loss: Callable[..., Tensor]
    group: dist.ProcessGroup | None
    reduction: Reduction
    size: Callable[[Any], float] | None

    @property
    def __wrapped__(self) -> Callable[..., Tensor]:  # where inspect.signature looks
        return self.loss

    def __call__(self, params: Params, batch: Any, *own: Any) -> Tensor:
        return self.whole(self._alone, params, batch, *own)

    def _alone(self, params: Params, batch: Any, *own: Any) -> Tensor:
        value = self.loss(params, batch, *own)
        given = [*floats((params, own)), *floats(batch)]
        leaf = captured_leaf([value], given) if isinstance(value, Tensor) and not under_transform() else None
        if leaf is not None:
            raise ValueError(
                f"the loss of data_parallel uses a tensor of shape {tuple(leaf.shape)} that requires grad and is none "
                "of its arguments: each process would have its own part of the derivative. Pass it as a param or an "
                "hparam of the loss, the third argument; or hold it fixed by detach()"
            )
        return value

    def whole(self, local: Callable[..., Tensor], params: Params, batch: Any, *own: Any) -> Tensor:
        """The whole loss, with ``local`` in place of this process's."""
        team = Team(self.group)
        team.check()
        params, own = tree.map_tree(whole, (params, own))  # of sharded params all of each
        shared = floats((params, own))
        if not shared:
            raise ValueError("data_parallel: params have no floating-point tensor")
        refuse_complex(tree.tensors((params, own)))
        copies, other = Copy.apply(team, *shared), (params, own)
        sums = partial(Whole.apply, team, self.reduction == "mean")
        least = min(copies, key=Tensor.numel)
        try:
            size = self._size_of(batch)
            at, knobs = combine(other, copies)
            value = _nothing(copies, batch) if size == 0 else check_scalar("loss", local(at, batch, *knobs))
            if not value.is_floating_point():
                raise ValueError(f"loss must return a floating-point tensor, got {value.dtype}; give it .float()")
        except Exception:
            with suppress(RuntimeError):  # which all get, and this process has its own
                sums(None, _nothing(copies, batch), least, *shared)
            raise
        return sums(size, value, least, *shared)[0]

    def _size_of(self, batch: Any) -> float:
        if self.reduction == "sum":
            return 1.0
        if self.size is not None:
            size = self.size(batch)
            one = isinstance(size, (int, float)) or (isinstance(size, Tensor) and size.numel() == 1)
            if not one or not 0 <= float(size) < math.inf:
                raise ValueError(f"size must give one finite number >= 0, got {size!r}")
            return float(size)
        lengths = {len(x) for x in tree.tensors(batch) if x.ndim}
        if len(lengths) != 1:
            got = f"lengths {sorted(lengths)}" if lengths else "no tensor with a length"
            raise ValueError(
                f"data_parallel weights a process by the length of its batch, but its tensors have {got}; give "
                "size=, a function of the batch, such as lambda batch: len(batch[0])"
            )
        return float(lengths.pop())


def agreed(loss: Any, numbers: Sequence[int]) -> list[int]:
    """The maximum of each number over all processes; for a loss in one process, the numbers themselves."""
    return Team(loss.group).most(numbers) if isinstance(loss, DataParallel) else list(numbers)


def shards_differ(who: str) -> ValueError:
    return ValueError(
        f"{who} cannot differentiate in the shards of data_parallel, which differ from process to process; put what is "
        "tuned into hparams['loss'], the same on all processes"
    )


def check_steps(loss: Any, count: int) -> None:
    """Raise if processes train a data-parallel loss for different numbers of steps."""
    most, least = agreed(loss, [count, -count])
    if most != -least:
        raise ValueError(
            f"batches has {count} steps in this process, and from {-least} to {most} in all: some would wait for the "
            "others; give each process its shard of every batch, and as many of them"
        )


def check_value(loss: Any, value: Tensor) -> None:
    """Raise if the outer loss beside a data-parallel training loss differs between processes."""
    if isinstance(loss, DataParallel):
        numbers = values_of(value).double().nan_to_num() + 0.0  # of the two zeros one
        bits = numbers.reshape(-1).view(torch.int64).tolist()
        found = agreed(loss, [*bits, *(-x for x in bits)])
        if found[: len(bits)] != [-x for x in found[len(bits) :]]:
            raise ValueError(
                "the outer loss is not the same in each process, but train_loss is data-parallel: wrap it too, by "
                "hft.data_parallel(outer_loss), or give all processes the same batch"
            )


def _nothing(copies: Sequence[Tensor], batch: Any) -> Tensor:
    """The loss of an empty shard: zero, with a vmap batch if another process may have one."""
    return zero_like(copies, *copies, *tree.tensors(batch))
