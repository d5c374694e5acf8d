"""What it takes to compute a step twice: the random state of the first time, and a loss that writes nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import tree

__all__ = ["Clock", "Mark", "offloaded", "refuse_mutation"]

T = TypeVar("T")


class Mark(NamedTuple):
    """The state of the random generators at some point."""

    cpu: Tensor
    cuda: list[Tensor]


class Clock:
    """Random state of the CPU and of the CUDA devices that the parameters lie on."""

    def __init__(self, params: Any) -> None:
        found = {x.device.index for x in tree.leaves(params) if x.device.type == "cuda"}
        self._devices = sorted(i for i in found if i is not None)

    def mark(self) -> Mark:
        """The random state now."""
        return Mark(torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in self._devices])

    def again(self, mark: Mark, function: Callable[[], T]) -> T:
        """``function()`` with the random state of a mark; the state outside stays as it is."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(mark.cpu)
            for i, state in zip(self._devices, mark.cuda, strict=True):
                torch.cuda.set_rng_state(state, i)
            return function()


def offloaded(values: Any, offload: bool, back_to: Any = None) -> Any:
    """``values`` on the CPU, or (``back_to``) on the device of these parameters again; unchanged without offload."""
    if not offload:
        return values
    if back_to is None:
        return tree.map_tree(lambda x: x.cpu(), values)
    device = next((x.device for x in tree.leaves(back_to)), torch.device("cpu"))
    # Step counts are made on the CPU and stay there.
    return tree.map_tree(lambda x: x.to(device) if x.is_floating_point() else x, values)


@contextmanager
def refuse_mutation(active: bool) -> Iterator[None]:
    """Raise where the code inside writes in place into a tensor that it has not made."""
    if not active:
        yield
        return
    with _Watch():
        yield


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()  # storages; one that is gone gives its id to a later one, made here as well

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            target = given.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(target, Tensor) and target.untyped_storage()._cdata not in self._made:
                raise RuntimeError(
                    f"train_loss writes in place ({func}) into a tensor of shape {tuple(target.shape)} that it has not "
                    "made, such as BatchNorm's running statistics; a step that is computed twice would write twice. "
                    "Put such modules into eval mode, or pass the tensors as params or in the batch"
                )
        result = func(*args, **kwargs)
        for x in tree.leaves(result):
            if isinstance(x, Tensor):
                self._made.add(x.untyped_storage()._cdata)
        return result
