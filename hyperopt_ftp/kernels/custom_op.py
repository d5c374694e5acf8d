"""The fused executions as a torch custom op, which torch.compile takes as it is: no graph break.

Eager calls go straight to the launchers; the op only carries their arguments, as flat lists, through a compiled graph.
An op that mutates has no derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu, triton
from .layers import SGD, AdamW, Amp, Ball, Layers, working_dtype


@torch.library.custom_op("hyperopt_ftp::run", mutates_args=["weights", "steps", "state"])
def run(
    execution: str, what: str, weights: list[Tensor], grads: list[Tensor], steps: list[Tensor], anchors: list[Tensor],
    state: list[Tensor], adamw: bool, lr: Tensor | None, packed: Tensor | None, numbers: list[float], norm: str,
    exact: bool, maximize: bool, grad_scale: Tensor | None, found_inf: Tensor | None,
) -> Tensor:  # fmt: skip
    """What a launcher's function ``what`` does; its radii, or nothing."""
    columns = [state[i : i + len(weights)] for i in range(0, len(state), len(weights))]
    layers = Layers._make([weights, grads, steps, anchors, *columns[:6], columns[6:]])
    radius_lr, kappa, *rule = numbers
    ball, amp = Ball(radius_lr, kappa, norm, exact), Amp(maximize, grad_scale, found_inf)
    launcher = {"fused_cpu": cpu, "triton": triton}[execution]
    if what == "radii_":
        return launcher.radii_(layers, ball, amp)
    if packed is not None:
        launcher.project_(layers, packed, ball)
    else:
        base = (AdamW if adamw else SGD)._make(rule)
        launcher.step_(layers, base if lr is None else base._replace(lr=lr), ball, amp)
    return weights[0].new_empty(0)


@run.register_fake
def _(_execution, what, weights, *_rest) -> Tensor:
    rows = len(weights) if what == "radii_" else 0
    return weights[0].new_empty(rows, dtype=working_dtype(weights[0]) if rows else None)
