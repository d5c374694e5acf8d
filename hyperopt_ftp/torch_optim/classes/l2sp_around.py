"""L2-SP around any ``torch.optim`` optimizer."""

from __future__ import annotations

from typing import Any

import torch

from ...anchored.l2sp import l2sp_rule
from ...calls import explained
from ...types import Anchor, Device, Excludes
from ..drop_in import DropIn
from ..execution.hold import Hold
from ..execution.many import Many, Phase, Piece
from ..movers.given import Given


class L2SP(DropIn):
    """L2-SP (arXiv 1802.01483) around an optimizer: the rule of :func:`~hyperopt_ftp.l2sp`.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS). Give it
            ``model.named_parameters()`` to exclude by name. Call ``step`` of the wrapper only.
        strength: pull toward the anchor, >= 0; a group may override it.
        decoupled: move the weights by ``lr * strength`` instead of changing the gradient that ``base`` gets.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is not an optimizer, or is LBFGS or already anchored.
        ValueError: a strength outside its domain; as :class:`FTPAdamW`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> opt = hft.L2SP(torch.optim.SGD([w], lr=0.1), strength=5.0)
    >>> for _ in range(50):
    ...     opt.zero_grad()
    ...     ((w - 2) ** 2).sum().backward()
    ...     opt.step()
    >>> w.data  # between the anchor, 1, and the minimum, 2
    tensor([1.2857, 1.2857])
    """

    @explained("it goes around an optimizer: L2SP(torch.optim.AdamW(params, lr=...), strength=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        strength: float = 1e-2,
        decoupled: bool = False,
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        options = {"strength": strength, "decoupled": decoupled}
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold(options, l2sp_rule, source, many=_many)), exclude)


def _many(group: dict[str, Any]) -> Many:
    if group["decoupled"]:
        return Many(after=Phase(_move, numbers=lambda sums, state, h: {"less": h["lr"] * h["strength"]}), keeps=True)
    return Many(Phase(_penalize, numbers=lambda sums, state, h: h, makes=("g",)))


def _penalize(x: Piece, numbers: dict[str, float]) -> None:
    torch.add(x.read("g"), x.deviation("w"), alpha=numbers["strength"], out=x.new["g"])


def _move(x: Piece, numbers: dict[str, float]) -> None:
    torch.add(x.read("moved"), x.deviation("w"), alpha=-numbers["less"], out=x.new["w"])
