"""EfficientNet-Lite0 with a new classifier, and its answers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.common.efficientnet import channels_last, layers_of, lite0, scaled
from experiments.common.task import Network

SMALL = 16  # pictures at once in tests: what lies in a core's cache is four times as fast as 256


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
def answers(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    pixels: Callable[[Tensor], Tensor] = lambda images: images,
    among: Tensor | None = None,
) -> Tensor:
    """The class [N] whose logit is the largest, among some or all, of each picture; `pixels` is what its place in
    `images` stands for."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(pixels(some).to(device)).cpu() for some in images.split(SMALL)])
    model.train(was_training)
    return logits.argmax(dim=1) if among is None else among[logits[:, among].argmax(dim=1)]
