"""The projection, differentiable to any order: its value by a fused kernel, its derivatives by the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .anchored import projections
from .kernels.layers import ABSENT, Ball, Layers
from .kernels.ops import FUSED, why_not
from .types import Norm

__all__ = ["project"]


def project(weights: Tensor, anchor: Tensor, radius: Tensor, norm: Norm = "mars") -> Tensor:
    """:func:`hyperopt_ftp.anchored.project`, its value computed by the fused kernels where they can.

    ``W0_i + min(radius / n_i, 1) * (W - W0)_i`` in one pass over W and W0. Works under ``torch.autograd`` (any order)
    and ``torch.func`` (grad, jvp, vmap, nested); all derivatives are those of the pure function, which is
    differentiated itself.

    Args:
        weights, anchor: one shape. The kernels run for float32 and float64 tensors of one dtype on a CPU whose rows
            are dense; the pure function for all others.
        radius: 0-d tensor.
        norm: ``"mars"`` or ``"l2"``.

    Raises:
        ValueError: an unknown norm, or shapes that differ.

    >>> import torch
    >>> from hyperopt_ftp.fused_projection import project
    >>> w = torch.tensor([[3.0, 1.0], [0.2, 0.2]])
    >>> project(w, torch.zeros(2, 2), torch.tensor(2.0))
    tensor([[1.5000, 0.5000],
            [0.2000, 0.2000]])
    >>> torch.func.grad(lambda r: project(w, torch.zeros(2, 2), r).sum())(torch.tensor(2.0))
    tensor(1.)
    """
    projections.check_norm(norm)
    if weights.shape != anchor.shape or radius.numel() != 1:
        raise ValueError(
            f"weights and anchor must have one shape and radius one element, got {tuple(weights.shape)}, "
            f"{tuple(anchor.shape)} and {tuple(radius.shape)}"
        )
    return _Projection.apply(weights, anchor, radius, norm)  # pyright: ignore[reportReturnType]


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(weights: Tensor, anchor: Tensor, radius: Tensor, norm: Norm) -> Tensor:
        fits = weights.dtype == anchor.dtype == radius.dtype and weights.stride() == anchor.stride()
        wide = weights.dtype in (torch.float32, torch.float64) and radius.device == weights.device
        odd = weights.is_neg() or anchor.is_neg() or why_not([weights, anchor]) is not None
        if not (fits and wide and weights.numel()) or odd:
            return projections.project(weights, anchor, radius, norm)
        rows = weights.shape[0] if norm == "mars" and weights.ndim >= 2 else 1
        out, c, n = weights.clone(), torch.empty_like(weights), weights.new_empty(rows)
        step, one = torch.zeros((), device=weights.device), radius.detach().reshape(())
        own = [[one.clone()] for _ in range(3)]  # the radius and its moments
        layers = Layers._make([[out], [ABSENT], [ABSENT], [anchor], [c], [n], *own, [step], []])
        kernel = FUSED["triton" if weights.is_cuda else "fused_cpu"]  # why_not refuses a GPU where Triton is no default
        kernel.project_(layers, one.reshape(1).clone(), Ball(0.0, 0.0, norm, False))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.norm = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return *_pullback(ctx)(cotangents[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        primals = ctx.saved_tensors
        filled = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents[:3], strict=True)]
        # The transpose of the transpose: unlike torch.func.jvp, it nests in a forward mode that is under way.
        transposed: Any = torch.func.vjp(_pullback(ctx), torch.zeros_like(primals[0]))
        return transposed[1](tuple(filled))[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        *tensors, norm = inputs
        return torch.func.vmap(_pure(norm), in_dims=in_dims[:3])(*tensors), 0


def _pure(norm: Norm) -> Callable[..., Tensor]:
    def pure(weights: Tensor, anchor: Tensor, radius: Tensor) -> Tensor:
        return projections.project(weights, anchor, radius, norm)

    return pure


def _pullback(ctx: Any) -> Callable[[Tensor], Any]:
    pulled: Any = torch.func.vjp(_pure(ctx.norm), *ctx.saved_tensors)
    return pulled[1]
