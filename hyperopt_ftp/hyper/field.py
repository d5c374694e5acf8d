"""Games: a vector field in the place of the gradient of a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import shown
from ..types import Params
from .core.strategy import Strategy
from .core.torch_private import has_graph, under_transform
from .guards.call_arguments import check_arguments
from .strategies.forward import Forward
from .strategies.zero_order import ZeroOrder


@dataclass(frozen=True)
class Field:
    """A loss whose gradient is ``grads(params, batch[, own])``, and whose value is the norm of that."""

    grads: Callable[..., Params]
    graph: bool  # whether it has to have one

    @property
    def __wrapped__(self) -> Callable[..., Params]:  # where inspect.signature looks
        return self.grads

    def __call__(self, params: Params, batch: Any, *own: Any) -> Tensor:
        at, found = tree.leaves(params), self.grads(params, batch, *own)
        rows = tree.aligned(found, params, "the result of grads")
        for i, (x, g) in enumerate(zip(at, rows, strict=True)):
            fits = isinstance(g, Tensor) and g.shape == x.shape
            if not fits or (self.graph and torch.is_grad_enabled() and not has_graph(g)):
                got = "one without a graph" if fits else getattr(g, "shape", shown(g))
                raise ValueError(
                    f"grads must give for {tree.named(params)[i][0]!r} a tensor of shape {tuple(x.shape)} with a "
                    "graph, as by torch.func.grad or torch.autograd.grad(..., create_graph=True) (where it is constant "
                    f"on purpose, g + 0 * param), got {got}"
                )
        return _AsGradient.apply(len(at), *at, *(g.to(x) for g, x in zip(rows, at, strict=True)))


class _AsGradient(torch.autograd.Function):
    """The norm of some tensors, which are the gradient in others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> Tensor:
        return torch.stack([g.square().sum().to(tensors[0]) for g in tensors[count:]]).sum().sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1 + inputs[0] :])
        ctx.save_for_forward(*inputs[1 + inputs[0] :])  # torch's vmap wants the same

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        field, (scale,) = ctx.saved_tensors, cotangents
        return (None, *(scale.to(g) * g for g in field), *[None] * len(field))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return ctx.saved_tensors[0].new_zeros(())  # of a loss, which is never differentiated


def field(train_loss: Any, grads: Any, hparams: Any, strategy: Strategy | None) -> Field:
    """The loss that stands for ``grads``, or an error where training cannot go by them."""
    if train_loss is not None:
        raise TypeError("grads stand in the place of a loss: give train_loss=None with them, or leave them out")
    check_arguments("grads", grads, 2, isinstance(hparams, dict) and "loss" in hparams)
    symmetric = isinstance(strategy, Forward) or getattr(strategy, "solver", None) == "cg"
    if symmetric or getattr(strategy, "compile", False):
        raise ValueError(
            f"{strategy} is for losses alone, whose second derivatives are symmetric, and cannot train by grads: take "
            "hft.Unroll(), without compile, or hft.Implicit('neumann')"
        )
    by_values = isinstance(strategy, ZeroOrder) or getattr(strategy, "first_order", False)
    return Field(grads, not by_values and (torch.is_grad_enabled() or under_transform()))
