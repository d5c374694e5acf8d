"""A pre-trained backbone of timm and a new head. Both take uint8 pictures."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from experiments.recipes.paper import Recipe
from experiments.recipes.weights import load, read_head

HEAD = "head.*"  # FTP leaves it free where it is new


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
