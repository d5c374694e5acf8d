"""A pre-trained backbone of timm and a new head. Both take uint8 pictures."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from experiments.common.errors import InputError
from experiments.recipes.paper import Recipe
from experiments.recipes.weights import load, read_head

HEAD = "head.*"  # FTP leaves it free where it is new
WIDTH = 128  # channels of the pyramid


class Pyramid(nn.Module):
    """A light FPN head: four maps in one width, summed from the coarsest to the finest, then one class per pixel."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in channels)
        self.smooth = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.classify = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        finer = [lateral(each) for lateral, each in zip(self.lateral, maps, strict=True)]
        total = finer.pop()
        while finer:
            each = finer.pop()
            total = each + F.interpolate(total, size=each.shape[-2:], mode="bilinear")
        return self.classify(F.relu(self.smooth(total)))


class Network(nn.Module):
    """With `frozen` only the head learns, and BatchNorm keeps its statistics; else it goes on learning them, as in the
    authors' training."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, recipe: Recipe, dense: bool) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.dense = dense
        self.normalized = recipe.zero_shot  # the classifier's rows are CLIP's texts, which meet features of norm 1
        self.frozen = False
        if dense:
            channels = [level["num_chs"] for level in list(self.backbone.feature_info)[-4:]]
            self.head: Any = Pyramid(channels, recipe.classes)
        else:
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
        inputs = (images.float() / 255 - self.mean) / self.std
        if not self.dense:
            features = self.backbone(inputs)
            return self.head(F.normalize(features, dim=-1) if self.normalized else features)
        maps = self.backbone.forward_intermediates(inputs, intermediates_only=True)[-4:]
        return F.interpolate(self.head(maps), size=images.shape[-2:], mode="bilinear")


def build(recipe: Recipe, checkpoint: Path, dense: bool, head: Path | None = None) -> Network:
    """`head` is the file of a zero-shot classifier, for the recipes that start from one.

    Raises InputError where timm does not know the network or a file does not fit it.
    """
    import timm  # slow to import

    sizes: dict[str, Any] = {"img_size": recipe.image_size} if recipe.fixed_size else {}
    try:
        backbone: Any = timm.create_model(recipe.model, pretrained=False, num_classes=recipe.projection, **sizes)
    except RuntimeError as error:
        raise InputError(f"timm {timm.__version__} does not know the network {recipe.model}: {error}") from error
    if recipe.projection and isinstance(backbone, timm.models.VisionTransformer):
        backbone.head.register_parameter("bias", None)  # timm adds one, CLIP's projection has none
    load(backbone, checkpoint)
    network = Network(backbone, recipe, dense)
    if head is not None:
        with torch.no_grad():
            network.head.weight.copy_(read_head(head, *network.head.weight.shape))
    return network
