"""MARS-SP: projection with a fixed radius around any ``torch.optim`` optimizer, by FTP's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...anchored.ftp import ftp_rule
from ...anchored.rule import Numbers, Rule, RuleState
from ...calls import explained
from ...hparams import to_tensors
from ...kernels.layers import Ball
from ...types import Anchor, Device, Excludes, Norm
from ..drop_in import DropIn, scalars
from ..execution.hold import Hold
from ..movers.given import Given


class MARSSP(DropIn):
    """MARS-SP (arXiv 2002.08253) around an optimizer: rows stay within a fixed radius of the anchor.

    The rule is that of :func:`~hyperopt_ftp.projected`; :class:`FTP` learns the radius instead. State and executions
    (``opt.execution``) are those of FTP.

    Args:
        base: as in :class:`L2SP`.
        radius: in units of row norm, >= 0. Infinity is ``base``, 0 the anchor. A group may override it.
        norm: ``"mars"`` or ``"l2"``, as in :class:`FTPAdamW`.
        anchor, exclude, anchor_dtype, anchor_device, save_anchor: as in :class:`FTPAdamW`.

    Raises:
        TypeError: as :class:`L2SP`.
        ValueError: a radius that is negative or NaN; as :class:`FTPAdamW`.

    Differs from the authors' code (henrygouk/mars-finetuning), which constrains the weights of convolutions and dense
    layers, but no biases. Of a BatchNorm it constrains gamma / sqrt(moving variance + 1e-6), entry by entry, and not
    beta. It keeps the new classifier within its own radius around 0. Here every parameter that is not excluded is kept
    near its anchor as it is; one with a single dimension is one row. ``exclude="*.bias"`` frees biases.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> opt = hft.MARSSP(torch.optim.SGD([w], lr=1.0), radius=1.0)
    >>> (w * torch.tensor([[-3.0, 1.0], [-0.2, 0.1]])).sum().backward()
    >>> opt.step()
    >>> w.data
    tensor([[ 0.7500, -0.2500],
            [ 0.2000, -0.1000]])
    """

    @explained("it goes around an optimizer: MARSSP(torch.optim.AdamW(params, lr=...), radius=...)")
    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        radius: float,
        norm: Norm = "mars",
        anchor: Anchor = None,
        exclude: Excludes = (),
        anchor_dtype: torch.dtype | None = None,
        anchor_device: Device = None,
        save_anchor: bool = True,
    ) -> None:
        source = (anchor, anchor_dtype, anchor_device, save_anchor)
        super().__init__(Given(base, Hold({"radius": radius, "norm": norm}, _rule, source, _ball)), exclude)

    def radii(self) -> dict[Any, float]:
        """Radius in effect of each constrained parameter that has made a step, by name (or index), in row norms.

        It is the given radius, or the largest row norm if that is smaller: 1e-8 for a parameter at its anchor.
        """
        return scalars(self, "radius")


def _rule(radius: float, norm: Norm) -> Rule:
    """FTP's, with the given radius in place of a learned one."""

    def before(g: Tensor, w: Tensor, w0: Tensor, state: RuleState, h: Numbers) -> tuple[Tensor, RuleState]:
        return g, {**state, "radius": h["radius"].to(state["radius"], non_blocking=True)}

    rule = ftp_rule(0.0, 1.0, norm, "paper")
    return rule._replace(hparams=to_tensors(radius=radius), before=before)


def _ball(group: dict[str, Any]) -> Ball:
    return Ball(0.0, 1.0, group["norm"], exact=False, fixed=float(group["radius"]))
