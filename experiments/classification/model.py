"""EfficientNet-Lite0 with a new classifier, and its accuracy."""

import torch
from torch import Tensor, nn

from experiments.common.efficientnet import channels_last, layers_of, lite0, scaled
from experiments.common.network import Network


class Classifier(Network):
    """The head is zero at first, so that every class is equally likely."""

    head = "network._fc.*"

    def __init__(self, classes: int, image_size: int, dropout: float) -> None:
        super().__init__()
        self.network = lite0(image_size, dropout)
        self.network._fc = nn.Linear(self.network._fc.in_features, classes)
        nn.init.zeros_(self.network._fc.weight)
        nn.init.zeros_(self.network._fc.bias)
        self.layers = layers_of(self.network, "network")
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(scaled(images))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Percentage of pictures whose largest logit is the right class."""
    was_training = model.training
    model.eval()
    right = 0
    for some, truth in zip(images.split(256), labels.split(256), strict=True):
        right += int((model(some.to(device)).argmax(dim=1).cpu() == truth).sum())
    model.train(was_training)
    return 100 * right / len(labels)
