"""Networks by their name in timm or torchvision, with pre-trained weights from a file on this machine."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from experiments.common.errors import InputError
from experiments.common.task import Network
from hyperopt_ftp.calls import did_you_mean

MOCO = "base_encoder."  # MoCoV3's query encoder; the file holds two more networks
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for torchvision's weights; timm's say it


class Named(Network):
    """A backbone and a head, zero at first. Each module with weights of its own is a layer, in the network's order."""

    head = "classifier.*"

    def __init__(self, backbone: Any, features: int, classes: int) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, nn.Linear(features, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        known = getattr(backbone, "pretrained_cfg", {"mean": MEAN, "std": STD})
        self.scale = known["mean"], known["std"]
        self.layers = by_module(backbone, "backbone")

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(standardised(images, *self.scale)))


def standardised(images: Tensor, *scale: Sequence[float]) -> Tensor:
    mean, std = (rearrange(images.new_tensor(x, dtype=torch.float32), "c -> c 1 1") for x in scale)
    return (images.float() / 255 - mean) / std


def by_module(network: nn.Module, name: str) -> list[list[str]]:
    """The parameters of each module that has any, in the network's order; `name` is the network's in the model."""
    layers: dict[str, list[str]] = {}
    for parameter, _ in network.named_parameters(prefix=name):
        layers.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    return list(layers.values())


def named_network(name: str, classes: int, size: int, checkpoint: Path | None, projection: int | None) -> Named:
    """The same one each time, for pictures of a size; without a checkpoint its weights are random. `projection` is how
    many outputs the network's own last layer has, if that stays below the head, as CLIP's does."""
    import timm  # slow to import
    from torchvision import models

    torch.manual_seed(0)
    others = models.list_models(module=models, exclude="googlenet")  # which has three outputs in training
    try:
        if timm.is_model(name):
            options: dict[str, Any] = {"num_classes": projection} if projection else {}
            backbone: Any = timm.create_model(name, **options)
        elif name in others and projection is None:
            backbone = models.get_model(name, weights=None)
        else:
            close = did_you_mean(name, [*timm.list_models(), *others])
            raise InputError(f"--network {name}: timm.list_models() and torchvision's lack it{close}")
        whole = set(backbone.state_dict())
        if timm.is_model(name) and projection is None:
            backbone.reset_classifier(0)
        elif projection is None:
            backbone.set_submodule(list(backbone.named_modules())[-1][0], nn.Identity())
        old = tuple({f"{x.rpartition('.')[0]}." for x in whole.difference(backbone.state_dict())})
        with torch.no_grad():
            (features,) = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1:]
    except (RuntimeError, ValueError, AssertionError) as error:  # networks complain of a size in many ways
        raise InputError(f"--network {name} makes no features of pictures of --size {size}: {error}") from error
    if checkpoint is not None:
        load_weights(backbone, checkpoint, old)
    return Named(backbone, features, classes)


def load_weights(network: Any, file: Path, old: tuple[str, ...]) -> None:
    """All weights of a network, of which timm knows several namings; without the file's own classifier, whose names
    begin with `old`."""
    from timm.models import load_state_dict  # slow to import

    try:
        weights = load_state_dict(str(file), weights_only=True)
        if any(name.startswith(MOCO) for name in weights):
            weights = {name.removeprefix(MOCO): value for name, value in weights.items() if name.startswith(MOCO)}
    except Exception as error:  # a damaged file raises many unrelated types
        raise InputError(
            f"--checkpoint {file} cannot be read ({type(error).__name__}); give a state_dict or .safetensors. Where a "
            "file holds code, as OpenAI's do, load it where you trust it, and save its state_dict()"
        ) from error
    # CLIP and older files: timm knows their names
    convert = getattr(importlib.import_module(type(network).__module__), "checkpoint_filter_fn", None)
    weights, own = weights if convert is None else convert(weights, network), network.state_dict()
    try:
        network.load_state_dict({name: w for name, w in weights.items() if name in own or not name.startswith(old)})
    except RuntimeError as error:
        raise InputError(f"--checkpoint {file} is of another network: {str(error)[:400]}") from error
