"""Warnings: no layer has left its anchor, or a radius is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...anchored.projections import FLOOR
from ...calls import warn_caller
from ...hparams import concrete
from ..drop_in import DropIn, scalars

#: Steps after which a network of which every layer is still at its anchor is worth a word.
LONG = 300
#: Steps before which radii on a device are not looked at, since that waits for it.
EARLY = 256


def watch_radii(optimizer: DropIn) -> None:
    """Warn once if a radius is NaN or infinite, or if after LONG steps every radius is the smallest one.

    Radii are read after steps 1, 2, 4, 8, ... and LONG only.
    """
    steps, done = 0, False

    def after(opt: Any, *_: Any) -> None:
        nonlocal steps, done
        if done or torch.compiler.is_compiling():
            return
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # nothing can wait for it
            return
        steps += 1
        if steps == LONG or not steps & (steps - 1):
            done = _look(opt, steps)

    optimizer.register_step_post_hook(after)


def _look(opt: DropIn, steps: int) -> bool:
    """Whether something was said."""
    tensors = [state["radius"] for _, _, state, _ in opt.initialized()]
    if not all(map(concrete, tensors)) or (steps < EARLY and any(x.device.type != "cpu" for x in tensors)):
        return False
    radii = scalars(opt, "radius")
    lost = next((name for name, radius in radii.items() if not math.isfinite(radius)), None)
    if lost is not None:
        said = (
            f"after step {steps} the radius of {lost!r} is {radii[lost]}, and its weights are lost: a gradient, or a "
            "weight, was not finite. Go back to a checkpoint, and clip gradients or take a smaller lr; a GradScaler "
            "leaves out such steps"
        )
    elif steps == LONG and radii and max(radii.values()) < 2 * FLOOR:
        said = (
            f"after {steps} steps every layer is still at its anchor: gradients do not agree from one step to the "
            "next; take larger batches, or momentum where the base has none"
        )
    else:
        return False
    warn_caller(said)
    return True
