"""Pre-trained weights from a file on this machine, and nowhere else."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common.errors import InputError

MOCO = "module.base_encoder."  # MoCoV3's query encoder; the file holds two more networks
SHOWN = 3  # names in an error


def _content(file: Path, option: str) -> Any:
    if not file.is_file():
        raise InputError(f"{option} {file} is not a file; give weights as .pt, .pth, .tar or .safetensors")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a damaged file raises many unrelated types
        raise InputError(
            f"{option} {file} cannot be read ({type(error).__name__}); give a file of tensors (a state_dict). "
            "OpenAI's own .pt files hold code: load such a file where you trust it, and save its state_dict()"
        ) from error


def read_file(file: Path) -> dict[str, Any]:
    content = _content(file, "--checkpoint")
    while isinstance(content, dict) and (inner := content.get("state_dict", content.get("model"))) is not None:
        content = inner
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"--checkpoint {file} holds no state_dict, i.e. tensors by name")
    return content


def read_head(file: Path, classes: int, features: int) -> Tensor:
    """A zero-shot classifier: a tensor, or the `weight` of a state_dict; one row for each class."""
    content = _content(file, "--head")
    weight = content.get("weight") if isinstance(content, dict) else content
    if not isinstance(weight, Tensor) or weight.shape != (classes, features):
        found = (
            f"the shape {list(weight.shape)}" if isinstance(weight, Tensor) else "no tensor, or none called 'weight'"
        )
        raise InputError(f"--head {file} has {found}; give a classifier of {classes} rows and {features} columns")
    return weight.detach()


def fitted(weights: dict[str, Any], backbone: Any) -> dict[str, Tensor]:
    """By timm's names, without the other networks in the file and without its classifier."""
    if any(name.startswith(MOCO) for name in weights):
        weights = {name.removeprefix(MOCO): value for name, value in weights.items() if name.startswith(MOCO)}
    # CLIP, Swin and older files: timm knows their names
    convert = getattr(importlib.import_module(type(backbone).__module__), "checkpoint_filter_fn", None)
    if convert is not None:
        weights = convert(weights, backbone)
    classifier = backbone.pretrained_cfg["classifier"]
    old = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    own = backbone.state_dict().keys()
    return {name: value for name, value in weights.items() if name in own or not name.startswith(old)}


def load(backbone: nn.Module, file: Path) -> None:
    """All weights of the backbone, or an error that names what does not fit."""
    weights, own = fitted(read_file(file), backbone), backbone.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [name for name in weights if name not in own]
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise InputError(
            f"--checkpoint {file} does not fit the network {type(backbone).__name__}: {'; '.join(problems)}; "
            "give the weights of the recipe's network (see experiments/recipes/README.md)"
        )
    backbone.load_state_dict(weights, strict=False)
