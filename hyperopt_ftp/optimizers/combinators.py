"""Combinators: an optimizer in, an optimizer out, one idea each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .. import tree
from ..hparams import check_zero_d, to_tensors
from ..types import Number, Optimizer, StateT
from .leafwise import check_grads, each_gradient, safe_sqrt
from .wrap import wrapped

__all__ = ["anneal", "clipped", "damped"]


def damped(by: Optimizer[StateT], kappa: Number = 1.0) -> Optimizer[StateT]:
    """Scale positive gradients by ``kappa`` before ``by`` sees them: ``h <- kappa * h where h > 0``.

    FTP (arXiv 2310.19182, section 3.3) calls this "positive gradient annealing". It is for the optimizer of a radius: a
    positive hypergradient asks for a smaller radius. ``kappa`` is no strength knob when ``by`` is scale-free: under
    Adam, with positive h only, kappa = 1, 0.5 and 0.1 give the same radii; kappa = 0 means that a radius never shrinks
    by its gradient.

    Args:
        by: any optimizer.
        kappa: number or 0-d tensor in [0, 1]; added to the hparams as ``"kappa"``.

    Raises:
        ValueError: kappa outside [0, 1].

    >>> import torch, hyperopt_ftp as hft
    >>> by = hft.damped(hft.sgd(lr=1.0), kappa=0.5)
    >>> r = torch.ones(2)
    >>> by.update(torch.tensor([1.0, -1.0]), by.init(r), r)[0]
    tensor([0.5000, 2.0000])
    """

    def before(grads: Any, own: dict[str, Any]) -> Any:
        return each_gradient(lambda h: torch.where(h > 0, own["kappa"].to(h.dtype) * h, h), grads)

    return _on_gradients(by, to_tensors(kappa=kappa), before)


def anneal(by: Optimizer[StateT], kappa: Number = 1.0) -> Optimizer[StateT]:
    """The former name of :func:`damped`; nothing in it changes over time. It warns.

    >>> import warnings, hyperopt_ftp as hft
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     by = hft.anneal(hft.sgd(lr=1.0), kappa=0.5)
    >>> by.hparams["kappa"]
    tensor(0.5000, dtype=torch.float64)
    """
    warnings.warn("hyperopt_ftp.anneal is called damped now", DeprecationWarning, stacklevel=2)
    return damped(by, kappa)


def clipped(base: Optimizer[StateT], max_norm: Number) -> Optimizer[StateT]:
    """Clip the global norm of the gradient: ``g <- g * min(1, max_norm / (||g|| + 1e-6))`` over all leaves.

    The rule of :func:`torch.nn.utils.clip_grad_norm_` with ``norm_type=2``.

    Args:
        base: any optimizer.
        max_norm: number or 0-d tensor >= 0; added to the hparams as ``"max_norm"``.

    Raises:
        ValueError: max_norm negative or NaN.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.clipped(hft.sgd(lr=1.0), max_norm=1.0)
    >>> w = torch.zeros(2)
    >>> opt.update(torch.tensor([30.0, -40.0]), opt.init(w), w)[0]
    tensor([-0.6000,  0.8000])
    """

    def before(grads: Any, own: dict[str, Any]) -> Any:
        squares = [(tree.working(g) ** 2).sum() for g in tree.leaves(grads) if g is not None]
        if not squares:
            return grads
        factor = (own["max_norm"] / (safe_sqrt(torch.stack(squares).sum()) + 1e-6)).clamp(max=1.0)
        return each_gradient(lambda g: (g * factor).to(g.dtype), grads)

    return _on_gradients(base, to_tensors(max_norm=max_norm), before)


def _on_gradients(base: Optimizer, own: dict[str, Any], before: Callable[[Any, dict[str, Any]], Any]) -> Optimizer:
    """``base`` on ``before(grads, own hparams)``; keeps the base's state."""

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> Any:
        return base.init(params, bases)

    def update(grads: Any, state: Any, params: Any, bases: Any, owns: dict[str, Any]) -> tuple[Any, Any]:
        check_grads(grads, params)
        for name, value in owns.items():
            check_zero_d(name, value)
        return base.update(before(grads, owns), state, params, bases)

    return wrapped(base, own, init, update, inner=lambda state: state)
