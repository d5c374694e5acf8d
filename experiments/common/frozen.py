"""The emoji network cut in two: frozen first blocks, whose outputs are computed once, and a tail that is trained."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.classification.data import Pictures
from experiments.classification.emoji import DRAWING, emoji_pictures
from experiments.common import checkpoint
from experiments.common.efficientnet import lite0, scaled
from experiments.common.progress import Progress

BLOCKS = 16  # of EfficientNet-Lite0
SIZE = 64  # of the pictures


class Tail(nn.Module):
    """The blocks from `block` on, the last convolution, pooling and a new head, zero at first; BatchNorm is frozen in
    its statistics, as in the whole network."""

    def __init__(self, block: int, classes: int) -> None:
        super().__init__()
        network = lite0(SIZE, dropout=0.0)
        self.blocks = nn.Sequential(*list(network._blocks)[block:])
        self.last = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())
        self.head = nn.Linear(network._fc.in_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    def train(self, mode: bool = True) -> "Tail":
        return super().train(False)  # the statistics of BatchNorm stay, and nothing else differs in training

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(x)).mean(dim=(2, 3)))


@torch.no_grad()
def frozen_features(cache: Path, progress: Progress, block: int) -> Pictures:
    """What goes into block number `block` of the pre-trained network (16: the last convolution), [N, C, H, W] float32,
    in place of every emoji in every style; kept in `cache`."""
    pictures = emoji_pictures(cache, progress)
    recipe = repr((DRAWING, block, SIZE, pictures.items))
    file = cache / f"features-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"
    if not file.exists():
        network = lite0(SIZE, dropout=0.0).eval()
        first = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), *list(network._blocks)[:block])
        found = []
        with progress.task(f"Features, block {block}", len(pictures.items)) as bar:
            for some in pictures.images.split(64):
                found.append(first(scaled(some)))
                bar.advance(steps=len(some))
        checkpoint.save(file, torch.cat(found).contiguous())
    return replace(pictures, images=checkpoint.load(file))
