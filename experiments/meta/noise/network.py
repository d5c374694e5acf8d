"""A network of one hidden layer as a pure function of its weights."""

import torch
from torch import Generator, Tensor

Params = dict[str, Tensor]


def network(inputs: int, hidden: int, outputs: int, drawn: Generator) -> Params:
    """He's normal weights below the ReLU, and smaller ones above it; biases of zero."""
    return {
        "below": torch.randn(inputs, hidden, generator=drawn) * (2 / inputs) ** 0.5,
        "below_bias": torch.zeros(hidden),
        "above": torch.randn(hidden, outputs, generator=drawn) / hidden**0.5,
        "above_bias": torch.zeros(outputs),
    }


def small_network(inputs: int, hidden: int, outputs: int, drawn: Generator) -> Params:
    """All numbers evenly from -1 / sqrt(n) to 1 / sqrt(n), n the inputs of the layer: how `torch.nn.Linear` begins."""

    def even(*shape: int, of: int) -> Tensor:
        return (2 * torch.rand(shape, generator=drawn) - 1) / of**0.5

    return {
        "below": even(inputs, hidden, of=inputs),
        "below_bias": even(hidden, of=inputs),
        "above": even(hidden, outputs, of=hidden),
        "above_bias": even(outputs, of=hidden),
    }


def logits(params: Params, x: Tensor) -> Tensor:
    """Shape (rows, outputs), of x with shape (rows, inputs)."""
    hidden = torch.relu(torch.addmm(params["below_bias"], x, params["below"]))
    return torch.addmm(params["above_bias"], hidden, params["above"])
