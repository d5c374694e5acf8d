"""Positive gradients scaled: the annealing of FTP's radius."""

from __future__ import annotations

from typing import Any

import torch

from ..calls import explained
from ..hparams import to_tensors
from ..types import Number, Optimizer, StateT
from .leafwise import each_gradient
from .on_gradients import on_gradients


@explained("damped(adam(lr=1e-3), kappa=0.5)")
def damped(by: Optimizer[StateT], kappa: Number = 1.0) -> Optimizer[StateT]:
    """Scale positive gradients by ``kappa`` before ``by`` gets them: ``h <- kappa * h where h > 0``.

    FTP (arXiv 2310.19182, section 3.3) calls this "positive gradient annealing". It is for the optimizer of a radius,
    whose positive hypergradients ask for a smaller radius. If ``by`` is scale-free, ``kappa`` hardly acts as a
    strength: under Adam, with positive h only, kappa = 1, 0.5 and 0.1 give the same radii. With kappa = 0 a radius
    never shrinks by its gradient.

    Args:
        by: any optimizer.
        kappa: number or 0-d tensor in [0, 1]; the hparam ``"kappa"``.

    Raises:
        ValueError: kappa outside [0, 1].

    >>> import torch, hyperopt_ftp as hft
    >>> by = hft.damped(hft.sgd(lr=1.0), kappa=0.5)
    >>> r = torch.ones(2)
    >>> by.update(torch.tensor([1.0, -1.0]), by.init(r), r)[0]
    tensor([0.5000, 2.0000])
    """

    def before(grads: Any, params: Any, own: dict[str, Any]) -> Any:
        return each_gradient(lambda h: torch.where(h > 0, own["kappa"].to(h.dtype) * h, h), grads)

    return on_gradients(by, to_tensors(kappa=kappa), before)
