"""Bytes of tensors: of a tree, and of those that some code makes, now and at the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ... import tree
from ...dtensors import local
from .torch_private import DispatchMode


def changed(before: Any, after: Any) -> tuple[list[Any], list[Any]]:
    """Of two trees of one structure, the leaves of the second one that a step has changed.

    Returns:
        those but the constants, which stay in their places; and of these the ones that are in no place of the first
        tree.
    """
    was, new = [*map(storage_of, tree.leaves(before))], tree.leaves(after)
    rows = [*zip(was, map(storage_of, new), new, strict=True)]
    left = {x for x, y, _ in rows if x != y}  # a tensor may move to another place
    moved = [(y, leaf) for x, y, leaf in rows if x != y or y in left]
    return [leaf for _, leaf in moved], [leaf for y, leaf in moved if y not in was]


def bytes_of(values: Any, kind: str | None = None) -> int:
    """Bytes of a tree's tensors on devices of that kind, ``None``: on all; shared memory counts once."""
    counted = [x for x in tree.leaves(values) if _counts(x) and kind in (None, x.device.type)]
    storages = [local(x).untyped_storage() for x in counted]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class Meter(DispatchMode):  # a context manager
    """Counts the tensors that the code inside makes on devices of a kind, while they live.

    Workspace inside kernels is not seen.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        # A storage's address is nobody else's as long as there is a weak reference to it.
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bound = 0  # of what lives: what has gone since is still in it
        self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._see((args, kwargs), made=False)
        result = func(*args, **kwargs)
        self._see(result, made=True)
        if self._bound > self._peak:
            self._peak = max(self._peak, self.live())
        return result

    def live(self) -> int:
        self._seen = {key: row for key, row in self._seen.items() if not row[0].expired()}
        self._bound = sum(size for _, size in self._seen.values())
        return self._bound

    def peak(self) -> int:
        """The largest number of bytes at once since the last call."""
        peak, self._peak = self._peak, self.live()
        return peak

    def _see(self, values: Any, made: bool) -> None:
        for x in tree.leaves(values):
            if _counts(x):
                storage = local(x).untyped_storage()
                if storage._cdata not in self._seen:
                    size = storage.nbytes() if made and x.device.type == self._kind else 0
                    self._seen[storage._cdata] = StorageWeakRef(storage), size
                    self._bound += size


def trial_peak(params: Any, trial: Callable[[], Any]) -> int:
    """The most bytes of tensors at once that a trial makes on the params' kind of device."""
    with Meter(tree.leaves(params)[0].device.type) as meter:
        trial()
        return meter.peak()


def storage_of(x: Any) -> int:
    """The number of a tensor's storage; of what has none, such as a sparse tensor, its own."""
    return local(x).untyped_storage()._cdata if _counts(x) else id(x)


def _counts(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided
