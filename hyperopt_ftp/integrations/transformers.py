"""Hugging Face's Trainer: optimizers that see the model and the names of its parameters. Needs nothing imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..hparams import check_number
from ..torch_optim import FTPAdamW

__all__ = ["optimizer_cls_and_kwargs", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Trainable parameters with their names, in two groups: those of two dimensions and more are decayed.

    The Trainer itself goes by the names of biases and by its norm layers; for most models it comes to the same.

    For ``Trainer(optimizers=(hft.FTPAdamW(parameter_groups(model, 0.01), lr=1e-4, exclude="classifier.*"), None))``.

    Args:
        model: the model, or a wrapper of it.
        weight_decay: of weights; biases and norms (0-d and 1-D parameters) have none. Finite.

    Raises:
        ValueError: a ``weight_decay`` that is not finite, a model without trainable parameters.
        TypeError: ``weight_decay`` is no number.

    >>> groups = parameter_groups(nn.Linear(4, 2), weight_decay=0.01)
    >>> [(group["weight_decay"], [name for name, _ in group["params"]]) for group in groups]
    [(0.01, ['weight']), (0.0, ['bias'])]
    """
    check_number("weight_decay", weight_decay)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f"the {type(model).__name__} has no parameter that requires a gradient; set requires_grad of some to True"
        )
    decayed = {"params": [pair for pair in trained if pair[1].ndim > 1], "weight_decay": weight_decay}
    others = {"params": [pair for pair in trained if pair[1].ndim <= 1], "weight_decay": 0.0}
    return [group for group in (decayed, others) if group["params"]]


def optimizer_cls_and_kwargs(
    build: Callable[..., Optimizer] = FTPAdamW, *, weight_decay: float = 0.0, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """What ``Trainer(optimizer_cls_and_kwargs=...)`` takes, for an optimizer that is built of named parameters.

    The Trainer's own groups come without names, so ``exclude`` could only be given tensors or modules. Here the
    optimizer is built when the Trainer asks for it, of the model it then has: this also works with ``model_init`` and
    under FSDP, where ``Trainer(optimizers=...)`` is refused.

    Args:
        build: called as ``build(parameter_groups(model, weight_decay), **options)``: a class of this package that takes
            parameters, or a function, say ``lambda groups: hft.SPD(torch.optim.AdamW(groups, lr=1e-4))``.
        weight_decay: as in :func:`parameter_groups`. The Trainer's ``args`` are not seen here, and neither are its
            ``learning_rate`` and ``weight_decay``.
        options: keywords of ``build``: ``lr``, ``exclude``, ...

    Raises:
        TypeError: ``build`` is not callable, ``weight_decay`` is no number.
        ValueError: a ``weight_decay`` that is not finite. What ``build`` raises comes when the training starts.

    >>> make, options = optimizer_cls_and_kwargs(lr=1e-4, exclude="1.*")
    >>> opt = make()(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), **options)  # as the Trainer does
    >>> [group["constrained"] for group in opt.param_groups]
    [[True, False], [True, False]]
    """
    check_number("weight_decay", weight_decay)
    if not callable(build):
        raise TypeError(
            f"build must be a class or a function that makes an optimizer of parameter groups, got a "
            f"{type(build).__name__}; an optimizer that exists goes into Trainer(optimizers=(optimizer, None))"
        )

    def of(model: nn.Module, **options: Any) -> Optimizer:
        return build(parameter_groups(model, weight_decay), **options)

    return lambda: of, options
