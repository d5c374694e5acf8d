"""A backbone of timm, pre-trained weights from a file on this machine and nowhere else, and a new head."""

import importlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from experiments.common.errors import InputError
from experiments.recipes.paper import Recipe

HEAD = "head.*"  # FTP leaves it free where it is new
MOCO = "base_encoder."  # MoCoV3's query encoder; the file holds two more networks


class Network(nn.Module):
    """With `frozen` only the head learns, and BatchNorm keeps its statistics; else it goes on learning them, as in the
    authors' training."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.normalized = recipe.zero_shot  # the classifier's rows are CLIP's texts, which meet features of norm 1
        self.frozen = False
        features = recipe.projection or self.backbone.num_features
        self.head = nn.Linear(features, recipe.classes, bias=not recipe.zero_shot)
        self.register_buffer("mean", rearrange(torch.tensor(recipe.mean), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(recipe.std), "c -> c 1 1"), persistent=False)

    def freeze(self) -> None:
        self.frozen = True
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone((images.float() / 255 - self.mean) / self.std)
        return self.head(F.normalize(features, dim=-1) if self.normalized else features)


def build(recipe: Recipe, checkpoint: Path, head: Path | None = None) -> Network:
    """`head` is the file of a zero-shot classifier, for the recipes that start from one."""
    import timm  # slow to import

    sizes: dict[str, Any] = {"img_size": recipe.image_size} if recipe.fixed_size else {}
    backbone: Any = timm.create_model(recipe.model, pretrained=False, num_classes=recipe.projection, **sizes)
    if recipe.projection and isinstance(backbone, timm.models.VisionTransformer):
        backbone.head.register_parameter("bias", None)  # timm adds one, CLIP's projection has none
    load(backbone, checkpoint)
    network = Network(backbone, recipe)
    if head is not None:
        with torch.no_grad():
            network.head.weight.copy_(read_head(head, *network.head.weight.shape))
    return network


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
