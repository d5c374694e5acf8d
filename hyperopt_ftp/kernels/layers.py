"""What a kernel is given: the tensors of many layers as columns, and the numbers of the rule. One signature for all
executions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Stands for a tensor that a layer does not have.
ABSENT = torch.empty(0)


class Layers(NamedTuple):
    """Columns of tensors, one entry a layer; all on one device, all weights of one dtype.

    Working dtype T: float64 for float64 weights, else float32. All tensors of a layer that have its shape share its
    strides.
    """

    weights: list[Tensor]  # W, changed in place
    grads: list[Tensor]  # g, all of the dtype of W, or all of T
    steps: list[Tensor]  # 0-d float32: steps that the base has done; advanced by step_
    anchors: list[Tensor]  # W0, any floating dtype; empty: zero
    deviations: list[Tensor]  # c, T (bfloat16 when lean); where unconstrained empty, as the next five
    norms: list[Tensor]  # n, shape (rows,), T
    radii: list[Tensor]  # gamma, 0-d, T
    radius_exp_avgs: list[Tensor]  # its first moment, 0-d, T
    radius_exp_avg_sqs: list[Tensor]  # its second moment
    radius_steps: list[Tensor]  # 0-d float32: steps that the radius has done; advanced by step_ and radii_
    moments: list[list[Tensor]]  # columns of the base, T. AdamW: m, v[, max v]. SGD with momentum: b


class AdamW(NamedTuple):
    """Numbers of :func:`hyperopt_ftp.adamw`."""

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class SGD(NamedTuple):
    """Numbers of :func:`hyperopt_ftp.sgd`. Momentum buffers start at 0."""

    lr: float | Tensor
    momentum: float
    weight_decay: float
    nesterov: bool


class Ball(NamedTuple):
    """Numbers of :func:`hyperopt_ftp.ftp`."""

    radius_lr: float
    kappa: float
    norm: str  # "mars" or "l2"
    exact: bool  # gradient="exact"
    fixed: float | None = None  # a radius that is not learned


class Amp(NamedTuple):
    """What turns stored gradients into g: negated under ``maximize``, divided by ``grad_scale``.

    Where ``found_inf`` is 1, nothing at all changes.
    """

    maximize: bool = False
    grad_scale: Tensor | None = None  # 0-d or one element, on the layers' device
    found_inf: Tensor | None = None


#: Gradients as they are.
PLAIN = Amp()


def working_dtype(w: Tensor) -> torch.dtype:
    """The dtype of arithmetic and state."""
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def choose(layers: Layers, which: Sequence[int]) -> Layers:
    """The layers at positions ``which``."""
    columns = [[column[i] for i in which] for column in layers[:-1]]
    return Layers._make([*columns, [[column[i] for i in which] for column in layers.moments]])


def check(layers: Layers, base: AdamW | SGD | None = None) -> None:
    """``RuntimeError`` where memory is not as the weights' lies: the kernels know neither dtypes nor strides."""
    moments = [] if base is None else layers.moments
    real = working_dtype(layers.weights[0])
    same_shape = zip(layers.weights, layers.grads, layers.anchors, layers.deviations, *moments, strict=True)
    for w, *others in same_shape:
        shape, strides = w.shape, w.stride()
        for t in others:
            if (t.stride() != strides or t.shape != shape) and t.numel():
                raise RuntimeError(
                    f"weights of shape {tuple(shape)} and strides {strides} have a gradient or state of shape "
                    f"{tuple(t.shape)} and strides {t.stride()}"
                )
    small = (layers.norms, layers.radii, layers.radius_exp_avgs, layers.radius_exp_avg_sqs)
    for column in (*moments, *small):
        for t in column:
            if t.dtype is not real and t.numel():
                raise RuntimeError(f"state of {layers.weights[0].dtype} weights must be {real}, got {t.dtype}")
