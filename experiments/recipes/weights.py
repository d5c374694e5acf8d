"""Pre-trained weights from a file on this machine, and nowhere else."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.errors import InputError

MOCO = "base_encoder."  # MoCoV3's query encoder; the file holds two more networks


def load(backbone: Any, file: Path) -> None:
    """All weights of the backbone, of which timm knows several namings; without the file's own classifier."""
    from timm.models import load_state_dict  # slow to import

    try:
        weights = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # a damaged file raises many unrelated types
        raise InputError(
            f"--checkpoint {file} cannot be read ({type(error).__name__}); give a file of tensors (a state_dict). "
            "OpenAI's own .pt files hold code: load such a file where you trust it, and save its state_dict()"
        ) from error
    if any(name.startswith(MOCO) for name in weights):
        weights = {name.removeprefix(MOCO): value for name, value in weights.items() if name.startswith(MOCO)}
    # CLIP and older files: timm knows their names
    convert = getattr(importlib.import_module(type(backbone).__module__), "checkpoint_filter_fn", None)
    weights = weights if convert is None else convert(weights, backbone)
    old, own = f"{backbone.pretrained_cfg['classifier']}.", backbone.state_dict()
    try:
        backbone.load_state_dict({name: w for name, w in weights.items() if name in own or not name.startswith(old)})
    except RuntimeError as error:
        raise InputError(f"--checkpoint {file} does not fit the recipe's network: {error}") from error


def read_head(file: Path, classes: int, features: int) -> Tensor:
    """A zero-shot classifier: a tensor, or the `weight` of a state_dict; one row for each class."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    weight = content.get("weight") if isinstance(content, dict) else content
    if not isinstance(weight, Tensor) or weight.shape != (classes, features):
        raise InputError(f"--head {file} is no classifier of {classes} rows and {features} columns")
    return weight.detach()
