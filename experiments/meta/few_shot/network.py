"""The network that is trained: one hidden layer on frozen features, and a head of as many outputs as there are ways."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.meta.few_shot.episodes import Batch

Net = dict[
    str, Any
]  # {"body": {"weight", "bias"}, "head": {"weight", "bias"}}; without a body the head reads the inputs


def head(inputs: int, outputs: int) -> Net:
    """Zero: all classes are equally likely."""
    return {"weight": torch.zeros(outputs, inputs), "bias": torch.zeros(outputs)}


def network(inputs: int, width: int, outputs: int, seed: int) -> Net:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, inputs, generator=generator) * inputs**-0.5
    return {"body": {"weight": weight, "bias": torch.zeros(width)}, "head": head(width, outputs)}


def hidden(net: Net, x: Tensor) -> Tensor:
    return F.gelu(F.linear(x, **net["body"])) if "body" in net else x  # smooth: it is differentiated twice


def logits(net: Net, x: Tensor) -> Tensor:
    return F.linear(hidden(net, x), **net["head"])


def loss(net: Net, batch: Batch) -> Tensor:
    return F.cross_entropy(logits(net, batch[0]), batch[1])


def right(net: Net, batch: Batch) -> Tensor:
    """Share of the pictures that are told right; 0 where the network has diverged."""
    found = logits(net, batch[0])
    return ((found.argmax(-1) == batch[1]) & found.isfinite().all(-1)).float().mean()
