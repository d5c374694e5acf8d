"""Hugging Face's Trainer: optimizers that get the model and the names of its parameters. Imports nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..calls import check_fit
from ..hparams import check_number
from ..torch_optim.classes.ftp_adamw import FTPAdamW
from ..torch_optim.classes.ftp_sgd import FTPSGD

__all__ = ["optimizer_cls_and_kwargs", "parameter_groups"]

# In the lower-case name of a parameter: the Trainer does not decay it.
_BIAS_OR_NORM = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:\.|$)")


def parameter_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Trainable parameters with their names, in two groups, with and without weight decay, as the Trainer splits them.

    Use: ``Trainer(optimizers=(hft.FTPAdamW(parameter_groups(model, 0.01), lr=1e-4, exclude="classifier.*"), None))``.

    Args:
        model: the model, or a wrapper of it.
        weight_decay: finite. It is 0 for ``nn.LayerNorm``, and for names of biases and norms.

    Raises:
        ValueError: a ``weight_decay`` that is negative or not finite, a model without trainable parameters.
        TypeError: ``weight_decay`` is not a number, or ``model`` not a module.

    Frozen parameters are left out, so an ``exclude`` that names only frozen ones matches nothing.

    >>> groups = parameter_groups(nn.Linear(4, 2), weight_decay=0.01)
    >>> [(group["weight_decay"], [name for name, _ in group["params"]]) for group in groups]
    [(0.01, ['weight']), (0.0, ['bias'])]
    """
    check_number("weight_decay", weight_decay)
    if not isinstance(model, nn.Module):
        raise TypeError(f"parameter_groups takes the model, got {type(model).__name__}")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f"the {type(model).__name__} has no parameter that requires a gradient; set requires_grad of some to True"
        )
    norms = tuple(f"{name}." for name, module in model.named_modules() if name and isinstance(module, nn.LayerNorm))
    split: dict[bool, list[Any]] = {True: [], False: []}
    for name, p in trained:
        split[not (name.startswith(norms) or _BIAS_OR_NORM.search(name.lower()))].append((name, p))
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0}
        for decayed, params in split.items()
        if params
    ]


def optimizer_cls_and_kwargs(
    build: Callable[..., Optimizer] = FTPAdamW, *, weight_decay: float = 0.0, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The argument of ``Trainer(optimizer_cls_and_kwargs=...)``, for an optimizer that is built from named parameters.

    The Trainer's own groups have no names, so ``exclude`` could not take patterns. This optimizer is built when the
    Trainer asks for it, from the model it has then. So it also works with ``model_init`` and under FSDP, which refuse
    ``Trainer(optimizers=...)``.

    Args:
        build: called as ``build(parameter_groups(model, weight_decay), **options)``: a class of this package that takes
            parameters, or a function such as ``lambda groups: hft.SPD(torch.optim.AdamW(groups, lr=1e-4))``.
        weight_decay: as in :func:`parameter_groups`. ``learning_rate`` and ``weight_decay`` in the Trainer's ``args``
            are not used.
        options: keywords of ``build``: ``lr``, ``exclude``, ...

    Raises:
        TypeError: ``build`` is not callable, or is a module, or does not take one of the ``options``; ``weight_decay``
            is not a number; ``model`` is not a module.
        ValueError: no ``lr`` for our classes, a ``weight_decay`` that is not finite. Errors of ``build`` are raised
            when training starts.

    >>> make, options = optimizer_cls_and_kwargs(lr=1e-4, exclude="1.*")
    >>> opt = make()(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), **options)  # as the Trainer does
    >>> [group["constrained"] for group in opt.param_groups]
    [[True, False], [True, False]]
    """
    check_number("weight_decay", weight_decay)
    if not callable(build) or isinstance(build, nn.Module):
        raise TypeError(
            f"build must be a class or a function that makes an optimizer of parameter groups, got a "
            f"{type(build).__name__}; an optimizer that exists goes into Trainer(optimizers=(optimizer, None))"
        )
    check_fit(build, [], **options)
    if build in (FTPAdamW, FTPSGD) and "lr" not in options:
        raise ValueError("give lr: the learning_rate of TrainingArguments is not seen here")

    def of(model: nn.Module, **options: Any) -> Optimizer:
        return build(parameter_groups(model, weight_decay), **options)

    return lambda: of, options
