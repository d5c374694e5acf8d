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
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.
        params, anchor, exclude, radius_lr, kappa, norm, gradient, radius_start: as in :class:`FTPAdamW`.
        anchor_dtype, anchor_device, save_anchor, lean, foreach, fused, capturable, differentiable: as in
            :class:`FTPAdamW`.

    Raises:
        ValueError: as :class:`FTPAdamW`; nesterov without momentum or with dampening.
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
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        lean: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient,
            "radius_start": radius_start, "lean": lean, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable, "differentiable": differentiable,
        }  # fmt: skip
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Own(MOMENTUM, learned_ball(defaults, source)), exclude, params, defaults)
        watch_radii(self)

    def radii(self) -> dict[Any, float]:
        """As :meth:`FTPAdamW.radii`."""
        return scalars(self, "radius")


def _moments(group: dict[str, Any]) -> tuple[str, ...]:
    if group["momentum"] == 0:
        return ()
    return ("momentum_buffer",) if group["dampening"] == 0 else ("momentum_buffer", "momentum_start")


def _check(group: dict[str, Any]) -> None:
    check_nesterov(group["momentum"], group["dampening"], group["nesterov"])


def _begin(state: dict[str, Any], group: dict[str, Any]) -> None:
    # As in torch, the first step with momentum is the one that finds no buffer; it differs with dampening.
    if "momentum_start" in _moments(group) and "momentum_start" not in state:
        begun = state.get("momentum_buffer") is not None
        state["momentum_start"] = torch.full_like(state["step"], -1.0) if begun else state["step"].clone()


MOMENTUM = Formula(
    SGD,
    numbers=("momentum", "dampening", "weight_decay", "nesterov"),
    flags=("nesterov",),
    specs=(Spec("momentum_buffer", "weights"), Spec("momentum_start", "count")),
    moments=_moments,
    whole=False,  # the buffer begins with the first step that has momentum
    check=_check,
    begin=_begin,
)
