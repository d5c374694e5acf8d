"""SGD with Fast Trainable Projection, as a drop-in ``torch.optim`` class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..hparams import as_tensor
from ..kernels import foreach
from ..optimizers.sgd import SGDState, sgd
from ..tree import working
from ..types import Optimizer
from .layer import Layer
from .native import Native, number

__all__ = ["FTPSGD"]


class FTPSGD(Native):
    """SGD whose weights stay in learned balls around their pre-trained values (FTP, arXiv 2310.19182).

    The rule of :class:`FTPAdamW`, where the displacement ``d`` is that of :class:`torch.optim.SGD`. Weight decay is
    coupled, as there: it enters d, and not the gradient g of the radius.

    Args:
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.
        params, anchor, exclude, radius_lr, kappa, norm, gradient, foreach, fused, capturable: as in :class:`FTPAdamW`.

    Raises:
        As :class:`FTPAdamW`; also ``ValueError`` for nesterov without momentum or with dampening.

    State: the momentum buffer (where momentum is used), c and the anchor, each the size of the weights.

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

    NUMBERS = (*Native.NUMBERS, "lr", "momentum", "dampening", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        anchor: Any = None,
        exclude: Any = (),
        radius_lr: float = 1e-2,
        kappa: float = 1.0,
        norm: str = "mars",
        gradient: str = "paper",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient, "maximize": maximize,
            "foreach": foreach, "fused": fused, "capturable": capturable, "differentiable": False,
        }  # fmt: skip
        super().__init__(params, defaults, anchor, exclude)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._pure_base(group)  # checks nesterov's conditions

    def _pure_base(self, group: dict[str, Any]) -> Optimizer:
        h = (group["momentum"], group["dampening"], group["weight_decay"])
        return sgd(as_tensor(group["lr"]), *h, nesterov=group["nesterov"])

    def _pure_state(self, layer: Layer, count: Tensor) -> SGDState:
        # As in torch, the first step with momentum is the one that finds no buffer.
        buffer = layer.state.get("momentum_buffer")
        if buffer is None:
            return SGDState(torch.zeros_like(count), {"w": torch.zeros_like(working(layer.param.detach()))})
        return SGDState(torch.ones_like(count), {"w": buffer})

    def _keep(self, layer: Layer, base_state: SGDState) -> None:
        layer.state["momentum_buffer"] = base_state.momentum_buffer["w"]

    def _move(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        grads: list[Tensor],
        layers: list[Layer],
        steps: Sequence[Any],
    ) -> None:
        fresh = ["momentum_buffer" not in layer.state for layer in layers]
        buffers = []
        if group["momentum"] != 0:
            for layer, w, new in zip(layers, weights, fresh, strict=True):
                if new:
                    layer.state["momentum_buffer"] = torch.empty_like(w)
                buffers.append(layer.state["momentum_buffer"])
        foreach.sgd_(
            weights, grads, buffers, fresh, lr=number(group["lr"], weights[0], group["capturable"]),
            momentum=group["momentum"], dampening=group["dampening"], weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )  # fmt: skip
