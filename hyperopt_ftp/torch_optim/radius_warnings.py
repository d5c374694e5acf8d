"""A word where a network has not left its anchor, and where a radius is no number any more."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from ..anchored.projections import FLOOR
from ..calls import callers_level
from .optimizer import DropIn

#: Steps after which a network of which every layer is still at its anchor is worth a word.
LONG = 300


def watch_radii(optimizer: DropIn) -> None:
    """Warn once where a radius is NaN or infinite, and once where after LONG steps every radius is the smallest one.

    To look at the radii waits for the device, so it is done after steps 1, 2, 4, 8, ... and LONG alone.
    """
    steps, handle = 0, optimizer.register_step_post_hook(lambda *_: after())

    def after() -> None:
        nonlocal steps
        if torch.compiler.is_compiling() or _is_captured():
            return
        steps += 1
        if steps != LONG and steps & (steps - 1):
            return
        radii: dict[Any, float] = optimizer._scalars("radius")
        lost = next((name for name, radius in radii.items() if not math.isfinite(radius)), None)
        if lost is not None:
            handle.remove()
            _warn(
                f"after {steps} steps the radius of {lost!r} is {radii[lost]}, and its weights are lost: a gradient "
                "was not finite. Go back to a checkpoint, and clip gradients or take a smaller lr; a GradScaler leaves "
                "out such steps"
            )
        elif steps == LONG and radii and max(radii.values()) < 2 * FLOOR:
            _warn(
                f"after {steps} steps every layer is still at its anchor: gradients do not agree from one step to the "
                "next; take larger batches, or momentum where the base has none"
            )


def _is_captured() -> bool:
    """Into a CUDA graph, in which nothing can wait for the device."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=callers_level())
