"""A number that identifies an anchor that is not in a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtensors import is_dtensor
from ...kernels import sharded

#: Elements at a time: the arithmetic takes 8 bytes each, and is to stay in the caches.
CHUNK = 2**16


def fingerprint(values: Tensor) -> int:
    """64 bits that depend on the numbers and their places, and not on dtype, memory format or shards.

    ``sum_i mix(mix(bits of x_i) * (2 i + 1))`` modulo 2^64, so processes add up their shards'. Zeros have 0. It finds
    mistakes, not forgeries: another tensor with the same number is easy to make.

    >>> import torch
    >>> from hyperopt_ftp.torch_optim.anchors.fingerprint import fingerprint
    >>> x = torch.tensor([1.0, 2.0])
    >>> fingerprint(x) == fingerprint(x.bfloat16()) != fingerprint(x.flip(0))
    True
    """
    x, first, group = values, 0, None
    if is_dtensor(values):
        x, first, group = sharded.shard(values)
    x = x.detach().resolve_neg().flatten()
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, x.numel(), CHUNK):
        part = x[start : start + CHUNK].double() + 0.0  # equal numbers have equal bits: no negative zeros
        places = torch.arange(first + start, first + start + len(part), device=x.device)
        total += _mix(_mix(part.view(torch.int64)).mul_(places.mul_(2).add_(1))).sum()
    if group is not None:
        torch.distributed.all_reduce(total, group=group)
    return int(total)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64 bits that keeps 0, in place (multiplications by odd constants wrap around)."""
    for constant, shift in ((-7046029254386353131, 31), (-4658895280553007687, 29)):
        x.mul_(constant)
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
    return x
