"""Fast Trainable Projection around any ``torch.optim`` optimizer, and what all of FTP's classes hold by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...anchored.ftp import ftp_rule
from ...calls import explained
from ...kernels.layers import Ball
from ...types import Anchor, Device, Excludes, Norm, PaperOrExact
from ..drop_in import DropIn, scalars
from ..execution.hold import Anchors, Hold
from ..movers.given import Given
from .radius_warnings import watch_radii


class FTP(DropIn):
    """Fast Trainable Projection (arXiv 2310.19182) around any optimizer.

    The rule is that of :class:`FTPAdamW`, with the change of the weights in ``base.step()`` as the displacement ``d``.
    The wrapper shares groups and state with ``base``, so LR schedulers and ``state_dict`` work on it. Call ``step`` of
    the wrapper only.

    Args:
        base: as in :class:`L2SP`.
        anchor, exclude, radius_lr, kappa, norm, gradient, radius_start: as in :class:`FTPAdamW`.
        anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError: ``base`` is not an optimizer, or is LBFGS or already anchored.
        ValueError: as :class:`FTPAdamW`.

    The wrapper evaluates the closure, before the base's step. ``base`` moves 16-bit weights in their own precision, so
    a move smaller than their last bit is lost. For weights that were not moved, c stays the master copy.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 3))
    >>> opt = hft.FTP(torch.optim.RMSprop([w], lr=0.1))
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> {name: round(radius, 4) for name, radius in opt.radii().items()}
    {0: 0.016}
    """

    @explained("it goes around an optimizer: FTP(torch.optim.AdamW(params, lr=...), radius_lr=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        anchor: Anchor = None,
        exclude: Excludes = (),
        radius_lr: float = 1e-2,
        kappa: float = 1.0,
        norm: Norm = "mars",
        gradient: PaperOrExact = "paper",
        radius_start: float | None = None,
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        options = {
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient, "radius_start": radius_start,
        }  # fmt: skip
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, learned_ball(options, source)), exclude)
        watch_radii(self)

    def radii(self) -> dict[Any, float]:
        """As :meth:`FTPAdamW.radii`."""
        return scalars(self, "radius")


def learned_ball(values: dict[str, Any], anchors: Anchors) -> Hold:
    """Rows in balls whose radius is learned; ``values`` has FTP's options, and may have others."""
    options = ("radius_lr", "kappa", "norm", "gradient", "radius_start")
    return Hold({name: values[name] for name in options}, ftp_rule, anchors, _ball)


def _ball(group: dict[str, Any]) -> Ball:
    radius_lr, kappa = (x.item() if isinstance(x, Tensor) else x for x in (group["radius_lr"], group["kappa"]))
    return Ball(radius_lr, kappa, group["norm"], group["gradient"] == "exact")
