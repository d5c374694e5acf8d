"""MARS-SP: projection with a fixed radius around any ``torch.optim`` optimizer, by FTP's kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .anchor_source import AnchorSource
from .around import Around
from .executions import Part
from .ftp_wrapper import FTP

__all__ = ["MARSSP"]


class MARSSP(FTP):
    """MARS-SP (arXiv 2002.08253) around an optimizer: rows stay in balls of a fixed radius around the anchor.

    The rule of :func:`~hyperopt_ftp.projected` with ``radius``; :class:`FTP` learns it instead. The projection runs in
    the same executions (``opt.execution``), and the state is FTP's. ``opt.radii()`` shows the radius in effect: the
    given one, or the largest row norm where that is smaller. FTP's other options lie in the groups and do nothing.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS). Give it
            ``model.named_parameters()`` to exclude by name. Step the wrapper alone.
        radius: in units of row norm, >= 0; infinity is ``base``, 0 the anchor. A group may have its own.
        norm: ``"mars"`` or ``"l2"``, as in :class:`FTPAdamW`.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is no optimizer, or LBFGS, or an anchored one.
        ValueError: a radius that is negative or NaN; as :class:`FTPAdamW`.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> opt = hft.MARSSP(torch.optim.SGD([w], lr=1.0), radius=1.0)
    >>> (w * torch.tensor([[-3.0, 1.0], [-0.2, 0.1]])).sum().backward()
    >>> opt.step()
    >>> w.data
    tensor([[ 0.7500, -0.2500],
            [ 0.2000, -0.1000]])
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("radius", *FTP.OPTIONS)
    NUMBERS: ClassVar[tuple[str, ...]] = ("radius", *FTP.NUMBERS)

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        radius: float,
        norm: str = "mars",
        anchor: Any = None,
        exclude: Any = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Any = None,
        save_anchor: bool = True,
    ) -> None:
        own = {"radius": radius, "radius_lr": 0.0, "kappa": 1.0, "norm": norm, "gradient": "paper"}
        Around.__init__(self, base, own, AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor), exclude)

    def _radii(self, execution: str, parts: list[Part], groups: list[dict[str, Any]]) -> list[Tensor]:
        pairs = zip(parts, groups, strict=True)
        return [torch.full_like(torch.stack(part.layers.radii), float(group["radius"])) for part, group in pairs]
