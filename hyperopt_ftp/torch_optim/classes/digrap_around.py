"""Directional gradient projection around any ``torch.optim`` optimizer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...anchored.digrap import digrap_rule, strengths
from ...calls import explained
from ...types import Anchor, Device, Excludes, PaperOrExact
from ..drop_in import DropIn, scalars
from ..execution.hold import Hold
from ..execution.many import Many, Phase, Piece
from ..movers.given import Given


class DiGraP(DropIn):
    """Directional Gradient Projection (arXiv 2502.15895) around an optimizer: the rule of :func:`~hyperopt_ftp.digrap`.

    Args:
        base: as in :class:`L2SP`; it gets the projected gradient.
        omega_lr: learning rate of omega, the learned strength of a tensor's projection, in [0, 1]; a group may override
            it.
        gradient: ``"paper"`` or ``"exact"``, as in :func:`~hyperopt_ftp.digrap`.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError, ValueError: as :class:`L2SP`.

    State beside the anchor: ``slope`` (the derivative of the last step in omega), ``omega``, its Adam moments
    ``omega_exp_avg`` and ``omega_exp_avg_sq``, and ``omega_step``.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = hft.DiGraP(torch.optim.SGD([w], lr=0.1, momentum=0.9), omega_lr=0.1)
    >>> for _ in range(10):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> list(opt.omegas())
    [0]
    """

    @explained("it goes around an optimizer: DiGraP(torch.optim.AdamW(params, lr=...), omega_lr=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        omega_lr: float = 1e-2,
        gradient: PaperOrExact = "paper",
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        options = {"omega_lr": omega_lr, "gradient": gradient}
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold(options, digrap_rule, source, many=_many)), exclude)

    def omegas(self) -> dict[Any, float]:
        """Omega of each constrained parameter that has made a step, by name (or index), in [0, 1]."""
        return scalars(self, "omega")


def _many(group: dict[str, Any]) -> Many:
    return Many(Phase(_turn, _products, partial(strengths, gradient=group["gradient"]), makes=("g", "slope")))


def _products(x: Piece) -> dict[str, Tensor]:
    g, d = x.read("g"), x.deviation("w", out=x.new["slope"])
    return {"last": torch.dot(g, x.old["slope"]), "product": torch.dot(g, d), "square": torch.dot(d, d)}


def _turn(x: Piece, numbers: dict[str, float]) -> None:
    d = x.new["slope"]
    torch.add(x.read("g"), d, alpha=-numbers["less"], out=x.new["g"])
    d.mul_(numbers["along"])
