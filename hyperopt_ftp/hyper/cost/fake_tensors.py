"""Tensors without values, for shapes and bytes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ... import tree


class FakeParams:
    """Whether params have values; if not (the meta device, or fake tensors), everything runs without values.

    Fake tensors can do more than meta tensors: move to another device, combine with real tensors, and draw random
    numbers.
    """

    def __init__(self, params: Any) -> None:
        rows = [x for x in tree.leaves(params) if isinstance(x, Tensor)]
        self.used: bool = any(x.is_meta or isinstance(x, FakeTensor) for x in rows)
        own = [x.fake_mode for x in rows if isinstance(x, FakeTensor)]
        self._mode = own[0] if own else FakeTensorMode(allow_non_fake_inputs=True)
        self._device = rows[0].device if self.used else None
        self._memo: dict[int, tuple[Tensor, Tensor]] = {}  # the given one lives as long as its number

    def mode(self) -> AbstractContextManager[Any]:
        return self._mode if self.used else nullcontext()

    def of(self, values: Any) -> Any:
        """A tree without values, on the device of the params; or as it is."""
        return tree.map_tree(self._of, values) if self.used else values

    def _of(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
            return x
        if id(x) not in self._memo:
            with self._mode, torch.no_grad():
                new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=self._device)
            self._memo[id(x)] = (x, new.requires_grad_(x.requires_grad))
        return self._memo[id(x)][1]
