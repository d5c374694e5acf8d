"""RecAdam's recall around any ``torch.optim`` optimizer."""

from __future__ import annotations

from typing import Any

import torch

from ...anchored.recall import recall_rule, shares
from ...calls import explained
from ...types import Anchor, Device, Excludes
from ..drop_in import DropIn
from ..execution.hold import Hold
from ..execution.many import Many, Phase, Piece
from ..movers.given import Given


class Recall(DropIn):
    """RecAdam's recall (arXiv 2004.12651) around an optimizer: the rule of :func:`~hyperopt_ftp.recall`.

    Args:
        base: as in :class:`L2SP`, with weight decay 0.
        strength: pull toward the anchor, times the learning rate, >= 0.
        rate: how fast the task's share grows, per step, >= 0.
        midpoint: the step at which task and recall have the same share. A group may override this, rate and strength.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.Recall(torch.optim.AdamW([w], lr=0.1, weight_decay=0.0), rate=1.0, midpoint=1.0)
    >>> (w - 1).square().sum().backward()
    >>> opt.step()
    >>> w.data  # half a step
    tensor([0.0500, 0.0500])
    """

    @explained("it goes around an optimizer: Recall(torch.optim.AdamW(params, lr=...), strength=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1.0,
        rate: float = 0.1,
        midpoint: float = 250.0,
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        options = {"strength": strength, "rate": rate, "midpoint": midpoint}
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold(options, recall_rule, source, many=_many)), exclude)


def _many(group: dict[str, Any]) -> Many:
    return Many(after=Phase(_mix, numbers=lambda sums, state, h: shares(state, h)), keeps=True)


def _mix(x: Piece, numbers: dict[str, float]) -> None:
    d = x.deviation("w")
    move = torch.sub(x.read("moved"), x.read("w"), out=x.scratch(1))
    mixed = torch.add(x.read("w"), move, alpha=numbers["share"], out=move)
    torch.add(mixed, d, alpha=-numbers["pull"], out=x.new["w"])
