"""Directional gradient projection: the gradient without a part of its component along the deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import explained
from ..hparams import to_tensors
from ..types import HParam, Optimizer, Params
from .rule import AnchoredState, Numbers, Rule, RuleState, anchored, dot


@explained("directed(base, anchor) is the pure rule, around a pure optimizer such as hft.adamw()")
def directed(base: Optimizer, anchor: Params, omega: HParam = 0.0) -> Optimizer[AnchoredState]:
    """Directional gradient projection with a given strength (arXiv 2502.15895, eqs. 3 to 7).

    For each constrained tensor with anchor ``W0``, weights ``W``, gradient ``g`` and ``d = W - W0``::

        p = (<g, d> / ||d||^2) d                    the component of g along the deviation; 0 at the anchor
        g <- g - omega * p      where <g, d> >= 0, else g

    ``<g, d> >= 0`` means that plain descent would move back toward the anchor. With omega = 1 the whole component is
    removed. DiGraP learns omega: ``hyper(directed(base, anchor), by=adam(lr=mu), over="omega")``, see
    :func:`~hyperopt_ftp.digrap`.

    Args:
        base: any optimizer.
        anchor: as in :func:`ftp`.
        omega: number, 0-d tensor, or dict by path of them, in [0, 1]; the hparam ``"omega"``. 0 is the base.

    Raises:
        ValueError: an omega outside [0, 1], an anchor that does not fit (at ``init``).

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.directed(hft.sgd(lr=1.0), torch.zeros(2), omega=0.5)
    >>> w = torch.tensor([1.0, 0.0])
    >>> opt.update(torch.tensor([0.2, 0.1]), opt.init(w), w)[0]
    tensor([ 0.9000, -0.1000])
    """

    def before(g: Tensor, w: Tensor, w0: Tensor, state: RuleState, h: Numbers) -> tuple[Tensor, RuleState]:
        d = w - w0
        ratio, back = component(dot(g, d), dot(d, d))
        return g - torch.where(back, h["omega"], 0.0) * ratio * d, state

    return anchored(base, anchor, Rule(to_tensors(omega=omega), before=before))


def component(product: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """From ``<g, d>`` and ``||d||^2``: how many times d the component p is (0 where d is), and whether descent leads
    back along d."""
    return product / torch.where(square == 0, 1.0, square), product >= 0
