"""The gradient of an outer loss with respect to hyperparameters, through K steps of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import tree
from ..hparams import as_tensor, complete, concrete
from ..optimizers.leafwise import check_params
from ..types import HParams, Optimizer, Params, State, check_optimizer
from . import paths
from .inner import Inner, Strategy, check_object
from .unroll import Unroll

__all__ = ["hypergradient"]


def hypergradient(
    optimizer: Optimizer,
    train_loss: Callable[..., Tensor],
    outer_loss: Callable[[Params], Tensor],
    params: Params,
    batches: Sequence[Any],
    over: Any = None,
    hparams: HParams | None = None,
    state: State | None = None,
    strategy: Strategy | None = None,
) -> tuple[Tensor, dict[str, Any], tuple[Params, State]]:
    """Train for ``len(batches)`` steps, and differentiate the outer loss at the end in the hyperparameters.

    Args:
        optimizer: any optimizer of the package, tuned ones included.
        train_loss: ``train_loss(params, batch) -> scalar``; with ``hparams["loss"]`` given,
            ``train_loss(params, batch, hparams["loss"])``.
        outer_loss: ``outer_loss(params) -> scalar``, for instance the loss on validation data.
        params: pytree of floating-point tensors; where training starts.
        batches: a sequence (it is read again), one entry for each step.
        over: paths of the hyperparameters to differentiate: a name, a tuple of names, dotted inside trees
            (``"betas.0"``, ``"by.lr"``, ``"radius.fc.weight"``, ``"loss.l2"``). ``None``: all.
        hparams: as ``optimizer.hparams`` (the default), and optionally ``"loss"``: a tree of the loss's own. A value
            may be a tree of 0-d tensors in the structure of the params: one for each layer.
        state: the optimizer's state before the first step; ``None``: ``optimizer.init``, which is then differentiated
            as well.
        strategy: :class:`Unroll` (default), :class:`Forward`, :class:`Implicit`, or any object with a method
            ``through_steps(inner, tuned)``.

    Returns:
        ``(value, grads, (params, state))``: the outer loss, its gradient as a dict by the names in ``over`` (all
        names for ``None``), and where training ended. Under a ``torch.func`` transform all of it can be differentiated
        again; otherwise it carries no graph.

    Raises:
        ValueError: ``over`` names what does not exist, a loss that is no scalar, no batches.
        TypeError: integer parameters, batches without a length, a strategy without ``through_steps``.

    Warns:
        UserWarning: the outer loss does not depend on a hyperparameter: its gradient is exactly zero.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p["w"] - x) ** 2).sum()
    >>> x = torch.ones(2, dtype=torch.float64)
    >>> value, grads, (p, state) = hft.hypergradient(
    ...     hft.adamw(lr=0.1), loss, lambda p: loss(p, x), {"w": 0 * x}, [x] * 5, over=("lr", "weight_decay")
    ... )
    >>> {name: bool(g < 0) for name, g in grads.items()}
    {'lr': True, 'weight_decay': False}
    """
    check_optimizer("optimizer", optimizer)
    strategy = Unroll() if strategy is None else strategy
    check_object(strategy)
    if not hasattr(strategy, "through_steps"):
        raise TypeError(
            f"strategy must have a method through_steps(inner, tuned), as Unroll, Forward and Implicit do; "
            f"{type(strategy).__name__} has none (OneStep needs no loss: it runs inside hyper)"
        )
    if not hasattr(batches, "__len__") or not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches must be a sequence, it is read again; got {type(batches).__name__}; use list(...)")
    if len(batches) == 0:
        raise ValueError("batches is empty: there is no step to differentiate through")
    check_params(params)
    full = check_hparams(optimizer, hparams)
    names = tuple(full) if over is None else paths.normalise(over, full)
    tuned = paths.select(full, names)
    inner = Inner(optimizer, train_loss, outer_loss, params, batches, full, state)
    value, grads, end = strategy.through_steps(inner, tuned)
    for name, grad in grads.items():
        warn_if_zero(name, grad)
    return value, grads, end


def check_hparams(optimizer: Optimizer, hparams: HParams | None) -> dict[str, Any]:
    """The optimizer's hparams, completed, and the loss's where they are given."""
    if not isinstance(hparams, dict) or "loss" not in hparams:
        return complete(hparams, optimizer.hparams)
    own = {name: value for name, value in hparams.items() if name != "loss"}
    return {**complete(own, optimizer.hparams), "loss": tree.map_tree(as_tensor, hparams["loss"])}


def warn_if_zero(name: str, grad: Any) -> None:
    parts = tree.leaves(grad)
    if parts and all(concrete(x) for x in parts) and all(bool((x == 0).all()) for x in parts):
        warnings.warn(
            f"the hypergradient of {name!r} is exactly 0: the outer loss does not depend on it through these steps",
            UserWarning,
            stacklevel=3,
        )
