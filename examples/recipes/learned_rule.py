"""An update rule that is a small network, for every weight alone: an optimizer whose hparams are its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.optimizers import leafwise, no_steps, zeros


def weights() -> dict[str, Tensor]:
    """Of a network with 16 units, whose first steps are those of Adam."""
    g = torch.Generator().manual_seed(0)
    w0, b0 = (torch.randn(shape, generator=g, dtype=torch.float64) / 2 for shape in ((4, 16), (16,)))
    return {"w0": w0, "b0": b0, "w1": torch.zeros(16, 2, dtype=torch.float64)}


def learned(net: dict[str, Tensor]) -> hft.Optimizer:
    """An optimizer like any other: its hparams are the network's weights."""

    def init(params: Any, hparams: Any = None) -> Any:
        return no_steps(), zeros(params), zeros(params)

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        step, h = state[0] + 1, (hparams or {"net": net})["net"]

        def rule(w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            mean, size = m / (1 - 0.9**step), (v / (1 - 0.99**step) + 1e-16).sqrt()
            seen = torch.stack([g / size, mean / size, size.log() / 5, (mean.abs() + 1e-8).log() / 5], -1)
            out = torch.tanh(seen @ h["w0"] + h["b0"]) @ h["w1"]
            return w - 0.1 * mean / size * (3 * out[..., 0].tanh()).exp() - 0.1 * size * out[..., 1], m, v

        params, m, v = leafwise(rule, params, grads, state[1:], ())
        return params, (step, m, v)

    return hft.Optimizer(init, update, {"net": net})
