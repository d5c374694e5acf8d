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
from ..anchors.source import AnchorSource
from ..drop_in import DropIn, scalars
from ..movers.own import Formula, Own
from .ftp_around import FTP_OPTIONS, learned_ball
from .radius_warnings import watch_radii


class FTPAdamW(DropIn):
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
        anchor: ``None``: the values just before a parameter's first step. A dict or ``state_dict`` of tensors by name,
            as they are now, or the path of a ``.safetensors`` file. ``"zero"``: zero, without memory for it (LoRA).
        exclude: unconstrained parameters: glob patterns on names (``"head.*"``), tensors, or modules; ``()`` or
            ``None``: all are held. Components that ``torch.compile``, checkpointing, FSDP and DDP put into names are
            ignored. A warning says so where nothing is held.
        radius_lr: step of the radius, in units of row norm (sum of absolute deviations in a row). A radius grows by at
            most about ``radius_lr`` a step whatever ``lr`` is: the first ``n / radius_lr`` steps warm up. At
            ``columns * lr`` the ball would follow every step of AdamW, at a tenth of it it limits nearly all.
        kappa: in [0, 1]. Not a strength: Adam is scale-free, so kappa = 1, 0.5 and 0.1 act alike while h > 0. With
            kappa = 0 a radius shrinks only when it is clipped to the largest row norm.
        norm: ``"mars"``: rows (dim 0) in L1; 0-d and 1-D tensors are one row. ``"l2"``: whole tensors.
        gradient: ``"paper"``: all rows contribute to h, as in the authors' code. ``"exact"``: clipped rows only, which
            is the true derivative of the step.
        radius_start: the first radius, finite, >= 0. ``None``: 1e-8, or what holds the weights that a run starts with,
            so the first step from the anchor moves almost nothing. 1e-8, or less: 1e-8 off the anchor too, which throws
            the weights back onto it, as the authors' code does. After a step a radius is at most the largest row
            norm: any large number leaves the first step to the base, which at a large ``lr`` is far.
        anchor_dtype: keep each anchor in this dtype if that changes none of its values (weights that were loaded from
            16 bits take 2 bytes), else as it is.
        anchor_device: ``"cpu"`` keeps the anchors there; a step fetches them.
        save_anchor: ``False`` leaves the anchors out of ``state_dict``, which then has a fingerprint of each: to load
            it, build the optimizer with the same anchor.
        lean: keep c in bfloat16: 3.5 instead of 4 buffers of the weights' size. W and n are as ever; the radius's
            gradient, which alone reads the stored c, is off by at most ``2^-8 sum_i <|g_i|, |c_i|> / n_i``.
        foreach: ``True``: multi-tensor ops; ``False``: the pure function, one parameter at a time.
        fused: ``True``: the compiled kernels (Numba on the CPU, Triton on a GPU). With ``foreach=None, fused=None`` the
            best that can run does: on a CPU fused, else multi-tensor, else (tensor subclasses) the pure function. A
            large model on a CPU without Numba warns. On a GPU fused has to be asked for, since its kernels have never
            run on one.
        capturable: keep step counts on the device and do without Python numbers in a step (CUDA graphs).
        differentiable: only ``False``: a step works in place. :func:`~hyperopt_ftp.ftp` is the differentiable rule.

    Raises:
        ValueError: a number outside its domain, an exclude that matches nothing, an anchor that does not fit or is not
            finite, two parameters of one name, ``lean`` with weights that are not float32.
        TypeError: parameters that are not float16, bfloat16, float32 or float64, a flag that is no bool.
        RuntimeError: ``fused=True`` where it cannot run; at a step, sparse or complex gradients, resized weights.
            Options that were changed in a group are checked at the next step. docs/errors.md has each error's text;
            after one, nothing has changed.

    Weights changed from outside between steps are respected. An infinite or NaN gradient makes its layer NaN, the
    radius included (it is in h), and no other. Under a GradScaler a step with ``fused=True`` unscales gradients
    itself, and is skipped on the device. 16-bit weights: all state is float32, with c as the master copy of the
    weights. State: m, v, c and the anchor, each the size of the weights.

    Differs from the authors' code: a run that starts off the anchor starts from the radius that holds it.

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
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "radius_lr": radius_lr, "kappa": kappa, "norm": norm, "gradient": gradient,
            "radius_start": radius_start, "lean": lean, "maximize": maximize, "foreach": foreach, "fused": fused,
            "capturable": capturable, "differentiable": differentiable,
        }  # fmt: skip
        source = AnchorSource(anchor, anchor_dtype, anchor_device, save_anchor)
        options = {name: defaults[name] for name in (*FTP_OPTIONS, "lean")}
        super().__init__(Own(ADAMW, learned_ball(options, source)), exclude, params, defaults)
        watch_radii(self)

    def radii(self) -> dict[Any, float]:
        """Radius of each constrained parameter that has made a step, by name (or index), in units of row norm.

        1e-8 is the smallest: the layer is held at its anchor, as in its first step, and comes back when its gradients
        agree from one step to the next.
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
