"""EfficientNet-Lite0 below the decoder of feature pyramid networks, and what it has right of every scene."""

from typing import Any

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_stat_scores

from experiments.common.efficientnet import channels_last, layers_of, lite0, scaled
from experiments.common.task import Network
from experiments.segmentation.scenes import Scenes

FEATURES, WIDTH = (24, 40, 112, 320), 64  # channels of the encoder at strides 4 to 32, and of the decoder
SMALL = 16  # scenes at once in tests


class Segmenter(Network):
    """The decoder has GroupNorm, which keeps no statistics. Its last layer is zero at first: all classes are alike."""

    head = "decoder.*"

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.encoder: Any = lite0(image_size, dropout=0.0)
        for unused in ("_conv_head", "_bn1", "_fc"):  # behind the last features: they would have no gradient
            delattr(self.encoder, unused)
        last = SegmentationHead(WIDTH, classes, kernel_size=1, upsampling=4)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        pyramid = FPNDecoder(list(FEATURES), 3, pyramid_channels=WIDTH, segmentation_channels=WIDTH)
        self.decoder = nn.Sequential(pyramid, last)
        self.layers = layers_of(self.encoder, "encoder")
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.features(scaled(images)))

    def features(self, inputs: Tensor) -> list[Tensor]:
        """The last ones of each size, from stride 4 on."""
        hidden, of_size = self.encoder._swish(self.encoder._bn0(self.encoder._conv_stem(inputs))), {}
        for block in self.encoder._blocks:
            hidden = block(hidden)
            of_size[hidden.shape[-1]] = hidden
        return list(of_size.values())[1:]  # without stride 2


@torch.no_grad()
def overlaps(model: nn.Module, some: Scenes, classes: int, device: torch.device) -> Tensor:
    """Pixels of intersection and of union [N, classes, 2], of each scene and class."""
    was_training = model.training
    model.eval()
    given = torch.cat([model(part.to(device)).argmax(dim=1).cpu() for part in some.images.split(SMALL)])
    model.train(was_training)
    counts = multiclass_stat_scores(given, some.masks.long(), classes, average=None, multidim_average="samplewise")
    right, false, _, missed, _ = counts.unbind(-1)
    return torch.stack([right, right + false + missed], -1)


def mean_iou(counts: Tensor) -> float:
    """Percentage over all scenes together: the mean of the classes that the masks or the network show."""
    right, union = counts.sum(0).double().unbind(-1)
    return float(100 * (right / union)[union > 0].mean())
