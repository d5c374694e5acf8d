"""AdamW with Fast Trainable Projection, as a drop-in ``torch.optim`` class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..hparams import as_tensor, check_number
from ..kernels import foreach
from ..optimizers.adam import AdamState, adamw
from ..tree import working
from ..types import Optimizer
from .layer import Layer
from .native import Native, number

__all__ = ["FTPAdamW"]


class FTPAdamW(Native):
    """AdamW whose weights stay in learned balls around their pre-trained values (FTP, arXiv 2310.19182, Algorithm 1).

    For each constrained parameter with anchor ``W0``, weights ``W`` and gradient ``g``; ``d`` is AdamW's displacement
    (learning rate and decoupled weight decay inside), ``mu`` = ``radius_lr``, and c, n on the right of ``h`` are those
    of the previous step::

        h     = sum_i <g_i, c_i> / n_i                  h <- kappa * h where h > 0
        gamma = max(gamma - mu * AdamDirection(h), 1e-8)
        c     = (W - d) - W0,    n_i = sum_j |c_ij| + 1e-8
        gamma = min(gamma, max_i n_i)
        W     = W0 + min(gamma / n_i, 1) * c_i

    Args:
        params: tensors, ``(name, tensor)`` pairs such as ``model.named_parameters()``, or groups of either. A group may
            override any option and say ``constrained=False``.
        lr, betas, eps, weight_decay, amsgrad, maximize: as in :class:`torch.optim.AdamW`; weight decay is 0 by default.
        anchor: ``None``: the values just before a parameter's first step. A dict or ``state_dict`` of tensors by name.
            ``"zero"``: zero, without memory for it (LoRA).
        exclude: unconstrained parameters: glob patterns on names (``"head.*"``), or tensors. Components that
            ``torch.compile``, checkpointing, FSDP and DDP put into names are ignored.
        radius_lr: step of the radius, in units of row norm (sum of absolute deviations in a row). A radius grows by at
            most about ``radius_lr`` a step whatever ``lr`` is: the first ``n / radius_lr`` steps warm up.
        kappa: in [0, 1]. Not a strength: Adam is scale-free, so kappa = 1, 0.5 and 0.1 act alike while h > 0. With
            kappa = 0 a radius shrinks only when it is clipped to the largest row norm.
        norm: ``"mars"``: rows (dim 0) in L1; 0-d and 1-D tensors are one row. ``"l2"``: whole tensors.
        gradient: ``"paper"``: all rows contribute to h, as in the authors' code. ``"exact"``: clipped rows only, which
            is the true derivative of the step.
        foreach: ``True``: multi-tensor ops; ``False``: the pure function, one parameter at a time; ``None``:
            multi-tensor unless parameters are tensor subclasses.
        fused: ``None`` or ``False``; there is no fused execution yet.
        capturable: keep step counts on the device and do without Python numbers in a step.

    Raises:
        ValueError: a number outside its domain, an exclude that matches nothing, an anchor that does not fit.
        TypeError: integer parameters.
        RuntimeError: ``fused=True``; at a step, sparse or complex gradients.

    Weights changed from outside between steps are respected. 16-bit weights: all state is float32, with c as the master
    copy of the weights. State: m, v, c and the anchor, each the size of the weights.

    Deviation from the authors' code: a run that starts off the anchor starts from the radius that holds it.

    >>> import torch, hyperopt_ftp as hft
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> opt = hft.FTPAdamW(model.named_parameters(), lr=1e-2, exclude="2.*")
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     model(torch.ones(1, 4)).sum().backward()
    ...     opt.step()
    >>> sorted(opt.radii()), opt.execution
    (['0.bias', '0.weight'], 'foreach')
    """

    NUMBERS = (*Native.NUMBERS, "lr", "eps", "weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
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
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient, "maximize": maximize,
            "foreach": foreach, "fused": fused, "capturable": capturable, "differentiable": False,
        }  # fmt: skip
        super().__init__(params, defaults, anchor, exclude)

    def _check_group(self, group: dict[str, Any]) -> None:
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be a pair (beta1, beta2), got {betas!r}")
        for beta in betas:
            check_number("betas", beta)
        super()._check_group(group)

    def _start(self, layer: Layer, group: dict[str, Any]) -> None:
        super()._start(layer, group)
        names = ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())
        for name in names:
            if name not in layer.state:
                layer.state[name] = torch.zeros_like(working(layer.param.detach()))

    def _pure_base(self, group: dict[str, Any]) -> Optimizer:
        return adamw(as_tensor(group["lr"]), group["betas"], group["eps"], group["weight_decay"], group["amsgrad"])

    def _pure_state(self, layer: Layer, count: Tensor) -> AdamState:
        m, v, vmax = (_leaf(layer.state, name) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        return AdamState(count, m, v, vmax)

    def _keep(self, layer: Layer, base_state: AdamState) -> None:
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if getattr(base_state, name):
                layer.state[name].copy_(getattr(base_state, name)["w"])

    def _move(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        grads: list[Tensor],
        layers: list[Layer],
        steps: Sequence[Any],
    ) -> None:
        states = [layer.state for layer in layers]
        foreach.adamw_(
            weights, grads, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [], steps,
            lr=number(group["lr"], weights[0], group["capturable"]), betas=group["betas"], eps=group["eps"],
            weight_decay=group["weight_decay"],
        )  # fmt: skip


def _leaf(state: dict[str, Any], name: str) -> Any:
    return {"w": state[name]} if name in state else ()
