"""A network of one hidden layer as a pure function of its weights."""

import torch
from torch import Tensor

Params = dict[str, Tensor]


def network(inputs: int, hidden: int, outputs: int, seed: int) -> Params:
    """He's normal weights below the ReLU, and smaller ones above it; biases of zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "below": torch.randn(inputs, hidden, generator=generator) * (2 / inputs) ** 0.5,
        "below_bias": torch.zeros(hidden),
        "above": torch.randn(hidden, outputs, generator=generator) / hidden**0.5,
        "above_bias": torch.zeros(outputs),
    }


def logits(params: Params, x: Tensor) -> Tensor:
    """Shape (rows, outputs), of x with shape (rows, inputs)."""
    hidden = torch.relu(torch.addmm(params["below_bias"], x, params["below"]))
    return torch.addmm(params["above_bias"], hidden, params["above"])
