"""What the hypergradient is taken in, and the constants of AdamW."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .task import Data, Encoder, Params, part_of

LR, BETAS, EPS, DECAY = 5e-5, (0.9, 0.999), 1e-6, 0.01
#: Rows of the embeddings that no batch has used have a second moment of zero, where a root has no derivative.
EPS_ROOT = 1e-12


class Numbers(NamedTuple):
    """What is differentiated in: leaves of one call."""

    lr: dict[str, Tensor]  # of each part of the network
    weight: Tensor  # of each example, before the sigmoid

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        """Of a loss, in each kind of number, as a vector."""
        *lr, weight = torch.autograd.grad(loss, [*self.lr.values(), self.weight])
        return {"lr": torch.stack(lr), "weight": weight}


def start(net: Encoder, data: Data) -> tuple[Params, Numbers]:
    """Params, and the numbers."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    options: dict[str, Any] = {"dtype": params["head.bias"].dtype, "requires_grad": True}
    lr = {part: torch.tensor(LR, **options) for part in net.parts()}
    return params, Numbers(lr, torch.zeros(data.examples, **options))


def of_each(params: Params, numbers: Numbers) -> dict[str, Tensor]:
    """The learning rate of each param: that of its part."""
    return {name: numbers.lr[part_of(name)] for name in params}
