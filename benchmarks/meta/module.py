"""A loss with its params as a module, for libraries that take no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


class Module(nn.Module):
    """``forward(*inputs)`` is ``loss(params, *inputs)``."""

    def __init__(self, loss: Callable[..., Tensor], params: Any) -> None:
        super().__init__()
        self.loss = loss
        leaves, self.spec = tree_flatten(params)
        self.names = [f"p{k}" for k in range(len(leaves))]
        for name, x in zip(self.names, leaves, strict=True):
            self.register_parameter(name, nn.Parameter(x.detach()))

    def params(self) -> Any:
        return tree_unflatten([getattr(self, name) for name in self.names], self.spec)

    def forward(self, *inputs: Any) -> Tensor:
        return self.loss(self.params(), *inputs)
