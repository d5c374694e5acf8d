"""Selective projection decay around any ``torch.optim`` optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...anchored.spd import share, spd_rule
from ...calls import explained
from ...types import Anchor, Device, Excludes
from ..drop_in import DropIn
from ..execution.hold import Hold
from ..execution.many import Many, Phase, Piece
from ..movers.given import Given


class SPD(DropIn):
    """Selective Projection Decay (arXiv 2411.01713) around an optimizer: the rule of :func:`~hyperopt_ftp.spd`.

    Args:
        base: as in :class:`L2SP`.
        strength: the paper's lambda, not multiplied by the learning rate, >= 0; a group may override it.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`. For adapters (LoRA) use
            ``anchor="zero"``.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.SPD(torch.optim.SGD([w], lr=0.1, momentum=0.9), strength=1.0)
    >>> for _ in range(100):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> bool((w - 1).abs().max() < 1e-2)
    True
    """

    @explained("it goes around an optimizer: SPD(torch.optim.AdamW(params, lr=...), strength=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1.0,
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold({"strength": strength}, spd_rule, source, many=_many)), exclude)


def _many(group: dict[str, Any]) -> Many:
    after = Phase(_pull_back, _after, lambda sums, state, h: {"less": share(**sums, strength=h["strength"])})
    return Many(Phase(sums=_before), after)


def _before(x: Piece) -> dict[str, Tensor]:
    d = x.deviation("w")
    return {"slope": torch.dot(x.read("g"), d), "before": torch.dot(d, d)}


def _after(x: Piece) -> dict[str, Tensor]:
    e = x.deviation("moved")
    return {"after": torch.dot(e, e)}


def _pull_back(x: Piece, numbers: dict[str, float]) -> None:
    if less := numbers["less"]:  # in many layers nothing goes
        torch.add(x.read("moved"), x.deviation("moved"), alpha=-less, out=x.new["w"])
