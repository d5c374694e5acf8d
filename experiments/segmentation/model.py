"""EfficientNet-Lite0 with a light decoder that says of every pixel which class it shows, and how well it does."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from experiments.common.efficientnet import channels_last, layers_of, lite0, scaled
from experiments.common.task import Network

FEATURES = (24, 40, 112, 320)  # channels of the encoder at strides 4, 8, 16 and 32
WIDTH = 64


class Decoder(nn.Module):
    """Every level is projected to one width, brought to the finest size and added up, as in SegFormer's MLP head.

    There is no BatchNorm: its statistics would have to be learned, and `Network` leaves them as they are.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in FEATURES)
        self.fuse = nn.Sequential(
            nn.GroupNorm(8, WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.ReLU()
        )
        self.classifier = nn.Conv2d(WIDTH, classes, 1)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def forward(self, levels: list[Tensor]) -> Tensor:
        first, *coarser = (project(level) for project, level in zip(self.projections, levels, strict=True))
        for level in coarser:
            first = first + F.interpolate(level, first.shape[-2:], mode="bilinear")
        return self.classifier(self.fuse(first))


class Segmenter(Network):
    """The last layer is zero at first, so that every class is equally likely."""

    head = "decoder.*"

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.encoder: Any = lite0(image_size, dropout=0.0)
        for unused in ("_conv_head", "_bn1", "_fc"):  # behind the last features: they would have no gradient
            delattr(self.encoder, unused)
        self.decoder = Decoder(classes)
        self.layers = layers_of(self.encoder, "encoder")
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.decoder(self.features(scaled(images)))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")

    def features(self, inputs: Tensor) -> list[Tensor]:
        """The last ones of each size, from stride 4 on."""
        encoder = self.encoder
        hidden = encoder._swish(encoder._bn0(encoder._conv_stem(inputs)))
        of_size = {}
        for block in encoder._blocks:
            hidden = block(hidden)
            of_size[hidden.shape[-1]] = hidden
        return list(of_size.values())[1:]  # without stride 2


@torch.no_grad()
def mean_iou(
    model: nn.Module, images: Tensor, masks: Tensor, *, classes: int, device: torch.device, batch_size: int = 50
) -> float:
    """Percentage: intersection over union of the pixels of all pictures together, averaged over the classes.

    Classes that neither the masks nor the network show do not count.
    """
    was_training = model.training
    model.eval()
    # not validated: that searches every batch for classes beyond the last
    metric = MulticlassJaccardIndex(classes, average="macro", validate_args=False).to(device)
    for some, truth in zip(images.split(batch_size), masks.split(batch_size), strict=True):
        metric.update(model(some.to(device)).argmax(dim=1), truth.to(device))
    model.train(was_training)
    return 100 * metric.compute().item()
