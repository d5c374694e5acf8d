"""A word where a network has not left its anchor."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..anchored.projections import FLOOR
from ..calls import callers_level
from .optimizer import DropIn

#: Steps after which a network of which every layer is still at its anchor is worth a word.
LONG = 300


def warn_if_it_stays(optimizer: DropIn) -> None:
    """Warn once where after LONG steps every radius is the smallest one. That step waits for the device."""
    steps = 0

    def after(*_: Any) -> None:
        nonlocal steps
        if torch.compiler.is_compiling():
            return
        steps += 1
        if steps < LONG:
            return
        handle.remove()
        radii = optimizer._scalars("radius").values()
        if radii and max(radii) < 2 * FLOOR:
            warnings.warn(
                f"after {steps} steps every layer is still at its anchor: gradients do not agree from one step to the "
                "next; take larger batches, or momentum where the base has none",
                UserWarning,
                stacklevel=callers_level(),
            )

    handle = optimizer.register_step_post_hook(after)
