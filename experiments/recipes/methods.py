"""The ways of fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.recipes.model import HEAD, Network
from experiments.recipes.recipe import Recipe

Anchor = Mapping[str, Tensor] | None  # None: where training starts


def ftp(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "anchor": anchor}
    options |= {"radius_lr": recipe.radius_lr, "kappa": recipe.kappa, "exclude": () if recipe.zero_shot else HEAD}
    if recipe.optimizer == "sgd":
        return hft.FTPSGD(model.named_parameters(), momentum=recipe.momentum, nesterov=True, **options)
    return hft.FTPAdamW(model.named_parameters(), **options)


def finetune(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": recipe.plain_lr, "weight_decay": recipe.plain_weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, momentum=recipe.momentum, nesterov=True, **options)
    return torch.optim.AdamW(weights, **options)


def linear(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    model.freeze()
    return finetune(model, recipe, anchor)


METHODS: Mapping[str, Callable[[Network, Recipe, Anchor], torch.optim.Optimizer]] = {
    "ftp": ftp,
    "finetune": finetune,
    "linear": linear,
}
