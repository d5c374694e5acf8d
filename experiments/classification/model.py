"""EfficientNet-Lite0 with a new classifier, and its accuracy."""

import torch
from torch import Tensor, nn

from experiments.common.efficientnet import channels_last, layers_of, lite0, scaled
from experiments.common.task import Network


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
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device, by_class: bool = False) -> float:
    """Percentage of pictures whose largest logit is the right class; ``by_class``: the mean over the classes."""
    was_training = model.training
    model.eval()
    right = torch.cat([model(some.to(device)).argmax(dim=1).cpu() for some in images.split(256)]) == labels
    model.train(was_training)
    parts = [right[labels == label] for label in labels.unique()] if by_class else [right]
    return sum(100 * int(part.sum()) / len(part) for part in parts) / len(parts)
