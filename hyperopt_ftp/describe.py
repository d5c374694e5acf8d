"""What the radii of an optimizer do, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .anchored.projections import FLOOR
from .calls import explained, few
from .torch_optim.checks.names import covering
from .watch import HELD, Measured, measure, of_package

#: Share of clipped rows up to which a ball hardly binds.
FREE = 0.1

NO_STEP = (
    "no layer with a radius has made a step: there was none, or it found no gradients (is this the optimizer of the "
    "model that backward() went through?)"
)


@explained()
def describe(optimizer: torch.optim.Optimizer, steps: Mapping[Any, int] | None = None) -> str:
    """What the radii do now, in words, and what to change if that is not wanted: one line for each case.

    A layer is *at the anchor* if it has the smallest radius, 1e-8. It is *held* if the last step clipped at least nine
    of ten of its rows, so the radius limits it. It is *free* if the last step clipped at most one of ten, so it moves
    as with the base alone. Otherwise it is *partly held*.

    Args:
        optimizer: ``FTPAdamW``, ``FTPSGD``, ``FTP`` or ``MARSSP``, also wrapped by Accelerate or timm's Lookahead.
        steps: number of steps for which layers have been held, by name: ``hft.watch(...).held``.

    Raises:
        TypeError: an optimizer without radii.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> opt = hft.MARSSP(torch.optim.SGD([("w", w)], lr=1.0), radius=1.0)
    >>> w.grad = torch.full((2, 2), -3.0)
    >>> opt.step()
    >>> print(hft.describe(opt))
    held: 1 of 1 layers (w); their balls decide how far they go; to let them go further, raise radius
    """
    measured = measure(of_package("describe", optimizer))
    if measured and not any("radius" in layer for layer in measured.values()):
        raise TypeError(f"describe is for optimizers with radii, such as FTPAdamW, got {type(optimizer).__name__}")
    cases: dict[str, list[Any]] = {"at the anchor": [], "held": [], "partly held": [], "free": []}
    for name, layer in measured.items():
        cases[_case(layer)].append(name)
    number = "radius_lr" if "radius_lr" in optimizer.param_groups[0] else "radius"
    then = {
        "at the anchor": "their gradients do not agree from one step to the next, so their radii stay at 1e-8; "
        f"a larger batch or {number} may let them go (not a bias right before a BatchNorm, which has no gradient)",
        "held": f"their balls decide how far they go; to let them go further, raise {number}",
        "partly held": "their balls limit some of their rows",
        "free": f"they go as without a ball; to hold them, lower {number}",
    }
    lines = [_line(case, names, measured, steps or {}, then[case]) for case, names in cases.items() if names]
    return "\n".join(lines) or NO_STEP


def _case(layer: Mapping[str, float]) -> str:
    if layer["radius"] < 2 * FLOOR:
        return "at the anchor"
    return "held" if layer["clipped"] >= HELD else "partly held" if layer["clipped"] > FREE else "free"


def _line(case: str, names: Sequence[Any], measured: Measured, steps: Mapping[Any, int], then: str) -> str:
    shown: Sequence[Any] = names
    if all(isinstance(name, str) for name in measured):
        shown = covering(names, measured)
    listed = few(shown).replace("'", "").replace("[", "(").replace("]", ")")
    long = min(steps.get(name, 0) for name in names) if case == "held" else 0
    since = f", for {long} steps or more" if long else ""
    return f"{case}: {len(names)} of {len(measured)} layers {listed}{since}; {then}"
