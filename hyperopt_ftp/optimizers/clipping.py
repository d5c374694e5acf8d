"""Gradients clipped before an optimizer sees them: all together, by tensor, by entry, or relative to the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import explained
from ..hparams import Domain, as_numbers, to_tensors
from ..types import Number, Optimizer, StateT
from .arithmetic import safe_sqrt
from .leafwise import check_grads, each_gradient
from .on_gradients import on_gradients

_LEAST_NORM = 1e-3  # of weights, in adaptive clipping: a unit that starts at zero could never leave it


@explained("clipped(adam(lr=1e-3), max_norm=1.0)")
def clipped(base: Optimizer[StateT], max_norm: Number) -> Optimizer[StateT]:
    """Clip the global norm of the gradient: ``g <- g * min(1, max_norm / (||g|| + 1e-6))`` over all leaves.

    The rule of :func:`torch.nn.utils.clip_grad_norm_` with ``norm_type=2``.

    Args:
        base: any optimizer.
        max_norm: number or 0-d tensor >= 0; the hparam ``"max_norm"``.

    Raises:
        ValueError: max_norm negative or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped(hft.sgd(lr=1.0), max_norm=1.0)
    >>> w = torch.zeros(2)
    >>> opt.update(torch.tensor([30.0, -40.0]), opt.init(w), w)[0]
    tensor([-0.6000,  0.8000])
    """

    def before(grads: Any, params: Any, own: dict[str, Any]) -> Any:
        squares = [_square(g) for g in tree.leaves(grads) if g is not None]
        if not squares:
            return grads
        # Layers may lie on several devices.
        factor = _factor(own["max_norm"], torch.stack([square.to(squares[0].device) for square in squares]).sum())
        return each_gradient(lambda g: (g * factor.to(g.device)).to(g.dtype), grads)

    return on_gradients(base, to_tensors(max_norm=max_norm), before)


@explained("clipped_per_layer(adam(lr=1e-3), max_norm=1.0)")
def clipped_per_layer(base: Optimizer[StateT], max_norm: Number) -> Optimizer[StateT]:
    """Clip the norm of each tensor's gradient by itself: ``g <- g * min(1, max_norm / (||g|| + 1e-6))`` leaf by leaf.

    The rule of :func:`torch.nn.utils.clip_grad_norm_` with ``norm_type=2``, for one parameter at a time. Unlike with
    :func:`clipped`, a large gradient of one layer does not shrink the steps of the others.

    Args:
        base: any optimizer.
        max_norm: number or 0-d tensor >= 0, the same for all tensors; the hparam ``"max_norm"``.

    Raises:
        ValueError: max_norm negative or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped_per_layer(hft.sgd(lr=1.0), max_norm=1.0)
    >>> params = {"a": torch.zeros(2), "b": torch.zeros(1)}
    >>> opt.update({"a": torch.tensor([30.0, -40.0]), "b": torch.tensor([0.5])}, opt.init(params), params)[0]
    {'a': tensor([-0.6000,  0.8000]), 'b': tensor([-0.5000])}
    """

    def before(grads: Any, params: Any, own: dict[str, Any]) -> Any:
        return each_gradient(lambda g: (g * _factor(own["max_norm"], _square(g))).to(g.dtype), grads)

    return on_gradients(base, to_tensors(max_norm=max_norm), before)


@explained("clipped_by_value(adam(lr=1e-3), max_value=0.1)")
def clipped_by_value(base: Optimizer[StateT], max_value: Number) -> Optimizer[StateT]:
    """Clip each entry of the gradient: ``g <- min(max(g, -max_value), max_value)``.

    The rule of :func:`torch.nn.utils.clip_grad_value_`.

    Args:
        base: any optimizer.
        max_value: number or 0-d tensor >= 0; the hparam ``"max_value"``.

    Raises:
        ValueError: max_value negative or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped_by_value(hft.sgd(lr=1.0), max_value=1.0)
    >>> w = torch.zeros(2)
    >>> opt.update(torch.tensor([0.5, -40.0]), opt.init(w), w)[0]
    tensor([-0.5000,  1.0000])
    """
    domains = {"max_value": Domain(0.0, math.inf)}

    def before(grads: Any, params: Any, own: dict[str, Any]) -> Any:
        (value,) = as_numbers([own["max_value"]])

        def one(g: Tensor) -> Tensor:
            most = value.to(g.device) if isinstance(value, Tensor) else value  # a bound has to be where the gradient is
            return g.clamp(-most, most).to(g.dtype)

        return each_gradient(one, grads)

    return on_gradients(base, to_tensors(domains, max_value=max_value), before, domains)


@explained("clipped_adaptively(sgd(lr=0.1), ratio=0.01)")
def clipped_adaptively(base: Optimizer[StateT], ratio: Number = 1e-2) -> Optimizer[StateT]:
    """Adaptive gradient clipping (arXiv 2102.06171, equation 3): limits a unit's gradient relative to its weights.

    For each unit i, with weights ``W_i`` and gradient ``g_i``::

        g_i <- g_i * ratio * max(||W_i||, 1e-3) / ||g_i||     where ||g_i|| > ratio * max(||W_i||, 1e-3)

    A unit is a row (dim 0) of a tensor with two or more dimensions, and the whole of a smaller tensor. Norms are L2. As
    in the authors' code, the divisor ``||g_i||`` is at least 1e-6.

    Args:
        base: any optimizer.
        ratio: number or 0-d tensor >= 0, the paper's lambda; the hparam ``"ratio"``.

    Raises:
        ValueError: ratio negative or NaN.

    The paper leaves out the last linear layer; use :func:`partition` for that.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped_adaptively(hft.sgd(lr=1.0), ratio=0.1)
    >>> w = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    >>> opt.update(torch.tensor([[9.0, 0.0], [0.1, 0.0]]), opt.init(w), w)[0]
    tensor([[2.5000, 4.0000],
            [2.9000, 4.0000]])
    """
    domains = {"ratio": Domain(0.0, math.inf, open_high=True)}

    def before(grads: Any, params: Any, own: dict[str, Any]) -> Any:
        def one(g: Tensor | None, w: Tensor) -> Tensor | None:
            if g is None:
                return None
            norm, most = _unit_norm(g), own["ratio"] * _unit_norm(w).clamp(min=_LEAST_NORM)
            factor = torch.where(norm > most, most / norm.clamp(min=1e-6), 1.0)
            return (g * factor).to(g.dtype)

        leaves, rebuild = tree.flatten(params)
        return rebuild([one(g, w) for g, w in zip(check_grads(grads, params), leaves, strict=True)])

    return on_gradients(base, to_tensors(domains, ratio=ratio), before, domains)


def _square(g: Tensor) -> Tensor:
    return (tree.working(g) ** 2).sum()


def _factor(max_norm: Tensor, square: Tensor) -> Tensor:
    """What brings a gradient of this squared norm to ``max_norm`` where it is longer."""
    return (max_norm / (safe_sqrt(square) + 1e-6)).clamp(max=1.0)


def _unit_norm(x: Tensor) -> Tensor:
    square = tree.working(x) ** 2
    return safe_sqrt(square.sum(tuple(range(1, x.ndim)), keepdim=True) if x.ndim > 1 else square.sum())
