"""A user's pictures with a class for every pixel, in VOC's layout, and an encoder by its name."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from experiments.common.corruptions import CORRUPTIONS
from experiments.common.errors import InputError
from experiments.common.named import MEAN, STD, by_module, load_weights, standardised
from experiments.common.options import VALIDATION, check_share
from experiments.common.progress import Progress
from experiments.common.reading import opened
from experiments.common.task import Network, Part
from experiments.segmentation import task as segmentation
from experiments.segmentation.model import Segmenter
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


@dataclass(frozen=True)
class Config(segmentation.Config):
    """Of a folder."""

    data: str = ""
    network: str | None = None
    checkpoint: str | None = None
    size: int = 224
    scenes: int = 10**6  # at most: all that there are

    def check(self) -> None:
        super().check()
        if not Path(self.data).is_dir() or self.anchor != "imagenet":
            raise InputError(f"--data {self.data} --anchor {self.anchor}: give a folder, and --anchor imagenet")
        if (self.network is None) != (self.checkpoint is None):
            raise InputError("--network NAME and --checkpoint FILE go together: nothing is downloaded")
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise InputError(f"--checkpoint {self.checkpoint} is not a file; give the weights of --network")


class OwnTask(segmentation.SegmentationTask):
    """Fine-tuned on train.txt, in an order of the split's; tested on val.txt, and on that under corruptions."""

    def __init__(self, config: Config, cache: Path, progress: Progress) -> None:
        self.config, self.device = config, torch.device(config.device)
        train, test, self.classes = own_scenes(Path(config.data), config.size)
        kept = check_share(config.labels, len(train.groups), self.classes - 1)
        order = torch.randperm(len(train.groups), generator=torch.Generator().manual_seed(config.split_seed))
        parts = {"finetune": order[:kept]}
        if config.holds_out:
            held = round(VALIDATION * kept)
            parts |= {"validation": order[:held], "train": order[held:kept]}
        self.scenes = {
            part: Scenes(train.images[rows], train.masks[rows], tuple(train.groups[row] for row in rows.tolist()))
            for part, rows in parts.items()
        }
        self.tests = {"val": test, **{kind: test.corrupted(kind, config.split_seed) for kind in CORRUPTIONS}}
        self.columns = {"id": ("val",), "corrupted": CORRUPTIONS, "ood": CORRUPTIONS}
        self.titles = {"id": "ID: val", "ood": "OOD mean"}
        self.parts = {part: Part(len(some.groups), some.draw) for part, some in self.scenes.items()}
        self.new_model()  # what cannot be built is refused before any training

    def fingerprint(self) -> str:
        file = self.config.checkpoint
        weights = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file is not None else "lite0"
        return f"{super().fingerprint()}-{weights}"

    def new_model(self) -> Network:
        config = self.config
        if config.network is None or config.checkpoint is None:
            return Segmenter(self.classes, config.size).to(self.device)
        return NamedSegmenter(config.network, self.classes, Path(config.checkpoint)).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED)
