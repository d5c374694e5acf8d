"""SGD with Fast Trainable Projection, as a drop-in ``torch.optim`` class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ...anchored.rule import Spec
from ...calls import explained
from ...kernels.layers import SGD
from ...optimizers.sgd import check_nesterov
from ...types import Anchor, Device, Excludes, Norm, PaperOrExact
from ..drop_in import DropIn, scalars
from ..movers.own import Formula, Own
from .ftp_around import learned_ball
from .radius_warnings import watch_radii


class FTPSGD(DropIn):
    """SGD that keeps the weights within a learned radius of their pre-trained values (FTP, arXiv 2310.19182).

    The rule is that of :class:`FTPAdamW`, with the displacement ``d`` of :class:`torch.optim.SGD`. Weight decay is
    coupled: it is part of d, but not of the gradient g in ``h``.

    Args:
        lr, momentum, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`. For dampening, take
            ``FTP(torch.optim.SGD(...))``.
        params, anchor, exclude, radius_lr, kappa, norm, gradient, radius_start: as in :class:`FTPAdamW`.
        anchor_dtype, anchor_device, save_anchor, lean, foreach, fused, capturable: as in :class:`FTPAdamW`.

    Raises:
        ValueError: as :class:`FTPAdamW`; nesterov without momentum; dampening in a group.
        TypeError, RuntimeError: as :class:`FTPAdamW`.

    State: the momentum buffer (if momentum is used), c and the anchor, each of the weights' size.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 3))
    >>> opt = hft.FTPSGD([w], lr=0.1, momentum=0.9, nesterov=True)
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     ((w - 1) ** 2).sum().backward()
    ...     opt.step()
    >>> {name: round(radius, 4) for name, radius in opt.radii().items()}
    {0: 0.016}
    """

    @explained()
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        lean: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient,
            "radius_start": radius_start, "lean": lean, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable, "differentiable": False,
        }  # fmt: skip
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Own(MOMENTUM, learned_ball(defaults, source)), exclude, params, defaults)
        watch_radii(self)

    def radii(self) -> dict[Any, float]:
        """As :meth:`FTPAdamW.radii`."""
        return scalars(self, "radius")


def _moments(group: dict[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


def _check(group: dict[str, Any]) -> None:
    if group.get("dampening", 0) != 0:  # of a checkpoint of torch's
        raise ValueError(f"FTPSGD has no dampening, got {group['dampening']!r}; take FTP(torch.optim.SGD(params, ...))")
    check_nesterov(group["momentum"], 0, group["nesterov"])


MOMENTUM = Formula(
    SGD,
    numbers=("momentum", "weight_decay", "nesterov"),
    flags=("nesterov",),
    specs=(Spec("momentum_buffer", "weights"),),
    moments=_moments,
    whole=False,  # the buffer begins with the first step that has momentum
    check=_check,
)
