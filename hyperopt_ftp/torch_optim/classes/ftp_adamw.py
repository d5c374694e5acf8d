"""AdamW with Fast Trainable Projection, as a drop-in ``torch.optim`` class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ...anchored.rule import Spec
from ...calls import explained
from ...kernels.layers import AdamW
from ...types import Anchor, Device, Excludes, Norm, PaperOrExact
from ..drop_in import DropIn, scalars
from ..movers.own import Formula, Own
from .ftp_around import learned_ball
from .radius_warnings import watch_radii


class FTPAdamW(DropIn):
    """AdamW that keeps weights within a learned radius of pre-trained values (FTP, arXiv 2310.19182, Algorithm 1).

    Each constrained parameter has an anchor ``W0``, weights ``W``, a gradient ``g`` and a radius ``gamma``. ``d`` is
    AdamW's displacement (learning rate and decoupled weight decay included), and ``mu`` = ``radius_lr``. The c and n in
    ``h`` are those of the previous step::

        h     = sum_i <g_i, c_i> / n_i                  h <- kappa * h where h > 0
        gamma = max(gamma - mu * AdamDirection(h), 1e-8)
        c     = (W - d) - W0,    n_i = sum_j |c_ij| + 1e-8
        gamma = min(gamma, max_i n_i)
        W     = W0 + min(gamma / n_i, 1) * c_i

    Args:
        params: tensors, ``(name, tensor)`` pairs such as ``model.named_parameters()``, or groups of either. A group may
            override any option, and may set ``constrained=False``.
        lr, betas, eps, weight_decay, amsgrad, maximize: as in :class:`torch.optim.AdamW`; weight decay is 0 by default.
        anchor: ``None``: the values just before a parameter's first step. Or a dict or ``state_dict`` of tensors by
            name, with their present values. Or the path of a ``.safetensors`` file. ``"zero"``: zero, which takes no
            memory (LoRA).
        exclude: parameters that are not constrained: glob patterns on names (``"head.*"``), tensors, or modules. ``()``
            or ``None``: all are constrained. Parts of names that ``torch.compile``, checkpointing, FSDP and DDP insert
            are ignored. A warning is given if nothing is constrained.
        radius_lr: learning rate of the radius, in units of row norm (sum of absolute deviations in a row). A radius
            grows by at most about ``radius_lr`` a step, whatever ``lr`` is, so it needs ``n / radius_lr`` steps to
            reach a row norm n. With ``radius_lr = columns * lr`` the radius keeps up with AdamW and limits nothing;
            with a tenth of that it limits nearly every step.
        kappa: factor of positive h, in [0, 1]. It hardly acts as a strength: Adam is scale-free, so kappa = 1, 0.5 and
            0.1 give the same while h > 0. With kappa = 0 a radius shrinks only when it is clipped to the largest row
            norm.
        norm: ``"mars"``: L1 norm of each row (dim 0); 0-d and 1-D tensors are one row. ``"l2"``: norm of the whole
            tensor.
        gradient: ``"paper"``: all rows contribute to h, as in the authors' code. ``"exact"``: only clipped rows, the
            true derivative of the step.
        radius_start: the first radius, finite, >= 0, if it is larger than the default. ``None``: the largest row norm
            of ``W - W0`` at the start, at least 1e-8, so the first step from the anchor moves almost nothing. 1e-8 or
            less: 1e-8 always, as in the authors' code; weights that start off the anchor are then reset to it. A large
            number leaves the first step unconstrained, since a radius is clipped after the step.
        anchor_dtype: store each anchor in this dtype if that changes none of its values, else as it is. Weights that
            were loaded from 16 bits then take 2 bytes.
        anchor_device: ``"cpu"`` stores the anchors there; each step copies them.
        save_anchor: ``False`` leaves the anchors out of ``state_dict``, which then has a fingerprint of each. To load
            it, build the optimizer with the same anchor.
        lean: store c in bfloat16: 3.5 instead of 4 buffers of the weights' size. W and n do not change. Only h is
            computed from the stored c; its error is at most ``2^-8 sum_i <|g_i|, |c_i|> / n_i``.
        foreach: ``True``: multi-tensor ops; ``False``: the pure function, one parameter at a time.
        fused: ``True``: the compiled kernels (Numba on the CPU, Triton on a GPU). With ``foreach=None, fused=None``, a
            CPU uses fused kernels, else multi-tensor ops, else (tensor subclasses) the pure function. Large models on a
            CPU without Numba warn. A GPU uses fused kernels only with ``fused=True``, since they have never run on one.
        capturable: keep step counts on the device, and use no Python numbers in a step. CUDA graphs need that, and
            ``foreach=True``.

    Raises:
        ValueError: a number outside its domain, an exclude that matches nothing, an anchor that does not fit or is not
            finite, two parameters of one name, ``lean`` with weights that are not float32.
        TypeError: parameters that are not float16, bfloat16, float32 or float64, a flag that is no bool.
        RuntimeError: ``fused=True`` where it cannot run; at a step, complex gradients, sparse ones of parameters
            that are not excluded (others count as dense), resized weights; at the first step of a parameter, an
            entry of the anchor that has been written into since the optimizer was made.

    Options that were changed in a group are checked at the next step. After an error nothing has changed.
    docs/reference/errors.md has each error's text.

    You may change weights between steps. An infinite or NaN gradient makes the weights and the radius of its parameter
    NaN, and no others. With a GradScaler and ``fused=True``, a step unscales gradients itself, and is skipped on the
    device. State: m, v, c and the anchor, each of the weights' size. For 16-bit weights all state is float32, and c
    holds their master copy.

    >>> import torch, hyperopt_ftp as hft
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> opt = hft.FTPAdamW(model.named_parameters(), lr=1e-2, exclude="2.*")
    >>> for _ in range(3):
    ...     opt.zero_grad()
    ...     model(torch.ones(1, 4)).sum().backward()
    ...     opt.step()
    >>> sorted(opt.radii())
    ['0.bias', '0.weight']
    """

    @explained()
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
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
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient,
            "radius_start": radius_start, "lean": lean, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable, "differentiable": False,
        }  # fmt: skip
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Own(ADAMW, learned_ball(defaults, source)), exclude, params, defaults)
        watch_radii(self)

    def radii(self) -> dict[Any, float]:
        """Radius of each constrained parameter that has made a step, by name (or index), in units of row norm.

        The smallest radius, 1e-8, holds a parameter at its anchor, as in its first step. It grows when the gradients of
        successive steps agree.
        """
        return scalars(self, "radius")


def _moments(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")


ADAMW = Formula(
    AdamW,
    numbers=("betas", "eps", "weight_decay"),
    flags=("amsgrad",),
    specs=tuple(Spec(name, "weights") for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    moments=_moments,
    whole=True,
)
