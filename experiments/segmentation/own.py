"""A user's pictures with a class for every pixel, in VOC's layout, and an encoder by its name."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from einops import rearrange
from PIL import Image
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from experiments.common.errors import InputError
from experiments.common.named import MEAN, STD, by_module, load_weights, standardised
from experiments.common.reading import opened
from experiments.common.task import Network
from experiments.segmentation.scenes import IGNORED, Scenes
from hyperopt_ftp.calls import did_you_mean

OLD = ("fc.", "_fc.", "head.", "classifier.", "last_linear.")  # classifiers of the files of weights
LAYOUT = "JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/train.txt and val.txt"


class NamedSegmenter(Network):
    """An encoder with the weights of a file, and the feature pyramid of its library, whose last layer is zero at
    first."""

    head = "decoder.*"

    def __init__(self, name: str, classes: int, checkpoint: Path) -> None:
        super().__init__()
        try:
            whole: Any = smp.FPN(name, encoder_weights=None, classes=classes, decoder_dropout=0.0)
        except (KeyError, RuntimeError) as error:
            close = did_you_mean(name, encoders)
            raise InputError(f"--network {name}: is none of smp.encoders.get_encoder_names(){close}") from error
        self.encoder: Any = whole.encoder
        load_weights(self.encoder, checkpoint, OLD)
        for parameter in whole.segmentation_head.parameters():
            nn.init.zeros_(parameter)
        self.decoder = nn.ModuleList([whole.decoder, whole.segmentation_head])
        self.layers = by_module(self.encoder, "encoder")

    def forward(self, images: Tensor) -> Tensor:
        pyramid, last = self.decoder
        return last(pyramid(self.encoder(standardised(images, MEAN, STD))))


def own_scenes(root: Path, size: int) -> tuple[Scenes, Scenes, int]:
    """Those of train.txt and of val.txt, and the number of classes."""
    train, val = (_read(root, part, size) for part in ("train", "val"))
    if both := {*train.groups} & {*val.groups}:
        raise InputError(f"--data {root}: {min(both)} is both in train.txt and in val.txt")
    known, tested = (some.masks[some.masks != IGNORED].unique().tolist() for some in (train, val))
    if len(known) < 2 or not {*tested} <= {*known}:
        raise InputError(f"--data {root}: the masks of train.txt have the classes {known}, of val.txt {tested}; all of "
                         f"these must be in the first, at least two; {IGNORED} is none")  # fmt: skip
    return train, val, 1 + max(known)


def _read(root: Path, part: str, size: int) -> Scenes:
    """The square in the middle of each."""
    file = root / "ImageSets" / "Segmentation" / f"{part}.txt"
    if not file.is_file() or not (names := file.read_text(encoding="utf-8").split()):
        raise InputError(f"--data {root}: {file} is not there, or empty; the layout is {LAYOUT}")
    images, masks = [], []
    for name in names:
        picture = opened(root / "JPEGImages" / f"{name}.jpg", root).convert("RGB")
        mask = opened(root / "SegmentationClass" / f"{name}.png", root)
        if mask.mode not in ("P", "L") or mask.size != picture.size:
            wanted = f"{picture.size} pixels, with a palette or grey"
            raise InputError(f"--data {root}: the mask of {name} is {mask.size}, {mask.mode}; it must be {wanted}")
        side, (width, height) = min(picture.size), picture.size
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        images.append(np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box)))
        masks.append(np.asarray(mask.resize((size, size), Image.Resampling.NEAREST, box)))
    pixels = rearrange(torch.from_numpy(np.stack(images)), "n h w rgb -> n rgb h w").contiguous()
    return Scenes(pixels, torch.from_numpy(np.stack(masks)), tuple(names))


def start_of(data: str, network: str | None, checkpoint: Path | None) -> str:
    """Where fine-tuning begins, for the report."""
    if network is None or checkpoint is None:
        return f"Pictures of {data}, from ImageNet's encoder and a new decoder"
    about = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    return f"Pictures of {data}, from the encoder {network} ({checkpoint.name}, {about}) and a new decoder"
