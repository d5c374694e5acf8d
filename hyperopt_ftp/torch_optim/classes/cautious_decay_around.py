"""Cautious decay toward the anchor around any ``torch.optim`` optimizer."""

from __future__ import annotations

from typing import Any

import torch

from ...anchored.cautious_decay import cautious_decay_rule
from ...calls import explained
from ...types import Anchor, Device, Excludes
from ..drop_in import DropIn
from ..execution.hold import Hold
from ..execution.many import Many, Phase, Piece
from ..movers.given import Given


class CautiousDecay(DropIn):
    """Cautious weight decay (arXiv 2510.12402) toward the anchor: the rule of :func:`~hyperopt_ftp.cautious_decay`.

    Args:
        base: as in :class:`L2SP`, with weight decay 0.
        strength: decay toward the anchor, times the learning rate, >= 0; a group may override it.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`. ``anchor="zero"`` is the
            paper's decay.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.CautiousDecay(torch.optim.AdamW([w], lr=0.1, weight_decay=0.0), strength=0.1)
    >>> (w - 1).square().sum().backward()
    >>> opt.step()
    >>> w.data
    tensor([0.1000, 0.1000])
    """

    @explained("it goes around an optimizer: CautiousDecay(torch.optim.AdamW(params, lr=...), strength=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1e-2,
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold({"strength": strength}, cautious_decay_rule, source, many=_many)), exclude)


def _many(group: dict[str, Any]) -> Many:
    return Many(after=Phase(_decay, numbers=lambda sums, state, h: {"less": h["lr"] * h["strength"]}), keeps=True)


def _decay(x: Piece, numbers: dict[str, float]) -> None:
    d, moved = x.deviation("w"), x.read("moved")
    agree = torch.sub(x.read("w"), moved, out=x.scratch(1)).mul_(d).ge_(0)  # 0 or 1: bools would take ten times as long
    torch.addcmul(moved, agree, d, value=-numbers["less"], out=x.new["w"])
