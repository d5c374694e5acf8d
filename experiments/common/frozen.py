"""The emoji network cut in two: frozen first blocks, whose outputs are computed once, and a tail that is trained."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.classification.emoji import DRAWING, emoji_pictures
from experiments.common import checkpoint
from experiments.common.efficientnet import lite0, scaled
from experiments.common.progress import Progress

BLOCKS = 16  # of EfficientNet-Lite0
SIZE = 64  # of the pictures


@dataclass(frozen=True)
class Features:
    """Of every emoji in every style; one item is one emoji, `groups` are near-duplicates."""

    x: Tensor  # [N, C, H, W] float32
    labels: Tensor  # [N], index into `classes`
    styles: Tensor  # [N], index into `style_names`
    items: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    style_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """A digest of all but the features themselves, whose last bits depend on the machine."""
        about = (tuple(self.x.shape), self.labels.tolist(), self.styles.tolist(), self.items, self.groups, self.classes)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


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
def frozen_features(cache: Path, progress: Progress, block: int) -> Features:
    """What goes into block number `block` of the pre-trained network (16: the last convolution); kept in `cache`."""
    pictures = emoji_pictures(cache, progress)
    recipe = repr((DRAWING, block, SIZE, pictures.items))
    file = cache / f"features-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"
    if file.exists():
        x = checkpoint.load(file)
    else:
        network = lite0(SIZE, dropout=0.0).eval()
        first = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), *list(network._blocks)[:block])
        found = []
        with progress.task(f"Features, block {block}", len(pictures.items)) as bar:
            for some in pictures.images.split(64):
                found.append(first(scaled(some)))
                bar.advance(steps=len(some))
        x = torch.cat(found).contiguous()
        checkpoint.save(file, x)
    return Features(
        x, pictures.labels, pictures.domains, pictures.items, pictures.groups, pictures.classes, pictures.domain_names
    )
