"""The task: scenes in one style, of a fixed pool; tested in all styles, and in that one under corruptions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.classification.data import limit_items, split
from experiments.classification.emoji import CLASSES, emoji_pictures
from experiments.common.corruptions import CORRUPTIONS
from experiments.common.errors import InputError
from experiments.common.options import VALIDATION, AnchorOptions, check_names, check_share, digest, option
from experiments.common.progress import Progress
from experiments.common.task import Network, Part
from experiments.segmentation.model import Segmenter, mean_iou, overlaps
from experiments.segmentation.own import NamedSegmenter, own_scenes, start_of
from experiments.segmentation.scenes import IGNORED, Scenes, compose, photographs

STARTS = {
    "styles": "Scenes of emoji, from a network trained on scenes of other emoji in all styles",
    "imagenet": "Scenes of emoji, from ImageNet's encoder and a new decoder",
}
BACKGROUND = 0.2  # weight of a pixel of the background in the loss, against 1 for one of an emoji


@dataclass(frozen=True)
class Config(AnchorOptions):
    """Scenes of emoji. Those of fine-tuning are drawn once for a split; what changes from epoch to epoch are flips."""

    anchor_head = 10.0
    anchor_batch_size = 16

    # The whole network trained beforehand on scenes of other emoji; or ImageNet's encoder and a new decoder.
    anchor: Literal["styles", "imagenet"] = "styles"
    limit: int | None = None  # use only so many emoji, for a quick try
    epochs: int = 3  # passes over the fine-tuning scenes
    lr: float = 6e-4  # first learning rate; it falls to 0 as a cosine
    batch_size: int = 16  # scenes in one step
    size: int = 64  # height and width of a scene, in pixels
    scenes: int = 320  # to fine-tune on
    labels: float = 1.0  # the share of these that is kept
    pretrain_scenes: int = 2000  # of the anchor's training
    anchor_epochs: int = 5  # passes over them
    anchor_lr: float = 1e-3  # first learning rate of the anchor
    test_scenes: int = 120  # in each test
    # Pictures of your own in place of the scenes, DIR in VOC's layout; the two options that follow are for them.
    data: str | None = None
    network: str | None = None  # an encoder of segmentation_models_pytorch; none: EfficientNet-Lite0, as for scenes
    checkpoint: str | None = None  # file of its weights

    def check(self) -> None:
        super().check()
        check_names("anchor", (self.anchor,), STARTS)
        if self.size % 32 or self.size > 224:  # 256 * 256 pixels are no uint16
            raise InputError(f"{option('size')} {self.size}: must be a multiple of 32, the encoder's stride, up to 224")
        if self.data is None:
            check_share(self.labels, self.scenes, len(CLASSES))
        elif not Path(self.data).is_dir() or self.anchor != "imagenet":
            raise InputError(f"--data {self.data} --anchor {self.anchor}: give a folder, and --anchor imagenet")
        if (self.network is None) != (self.checkpoint is None) or (self.data is None and self.network is not None):
            raise InputError("--network NAME and --checkpoint FILE go together, and with --data DIR")
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise InputError(f"--checkpoint {self.checkpoint} is not a file; give the weights of --network")


class SegmentationTask:
    """A `Task` over scenes in memory. No emoji and no photograph is in both a training and a test."""

    name = "segmentation"
    metric = "mIoU"
    by_class = False

    def __init__(self, config: Config, cache: Path, progress: Progress) -> None:
        self.device, self.config, self.background = torch.device(config.device), config, BACKGROUND
        others = self._read(config) if config.data is not None else self._compose(config, cache, progress)
        own = next(iter(self.tests))
        self.tests |= {kind: self.tests[own].corrupted(kind, config.split_seed) for kind in CORRUPTIONS}
        styles = {"styles": others} if others else {}
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": (own,), **styles, "corrupted": CORRUPTIONS, "ood": (*others, *CORRUPTIONS)
        }  # fmt: skip
        self.titles: Mapping[str, str] = {"id": f"ID: {own}", "ood": "OOD mean", "styles": "other styles"}
        self.parts: Mapping[str, Part] = {part: Part(len(some.groups), some.draw) for part, some in self.scenes.items()}

    def _read(self, config: Config) -> tuple[str, ...]:
        """Pictures of a user's, in an order of the split's; there are no other styles."""
        root, checkpoint = Path(config.data or ""), Path(config.checkpoint) if config.checkpoint else None
        train, test, self.classes = own_scenes(root, config.size)
        order = torch.randperm(len(train.groups), generator=torch.Generator().manual_seed(config.split_seed))
        self._share(train.select(order), config)
        self.tests, self.background = {"val": test}, 1.0
        self.start = start_of(root.name, config.network, checkpoint)
        self.new_model()  # what cannot be built is refused before any training
        return ()

    def _share(self, pool: Scenes, config: Config) -> None:
        kept = check_share(config.labels, len(pool.groups), self.classes - 1)
        held = round(VALIDATION * kept)
        self.scenes = {"finetune": pool.take(0, kept)}
        if config.holds_out:
            self.scenes |= {"validation": pool.take(0, held), "train": pool.take(held, kept)}

    def _compose(self, config: Config, cache: Path, progress: Progress) -> tuple[str, ...]:
        """Scenes of emoji.

        Returns:
            The other styles.
        """
        self.start = STARTS[config.anchor]
        emoji = emoji_pictures(cache, progress, alpha=True)
        if config.limit is not None:
            emoji = limit_items(emoji, config.limit, config.split_seed)
        of = split(emoji, config.split_seed)
        self.classes = 1 + len(CLASSES)  # the background is one
        known, new = photographs("train"), photographs("test")
        every = range(len(emoji.domain_names))
        seed, name = 3 * config.split_seed, str(config.split_seed)
        pool = compose(of["finetune"], [0], known, name, config.scenes, config.size, seed)
        self._share(pool, config)
        if not config.head_is_new:
            pretrain = compose(of["pretrain"], every, known, name, config.pretrain_scenes, config.size, seed + 1)
            self.scenes["pretrain"] = pretrain
        self.tests = {
            style: compose(of["test"], [number], new, name, config.test_scenes, config.size, seed + 2)
            for number, style in enumerate(emoji.domain_names)
        }
        return emoji.domain_names[1:]

    def fingerprint(self) -> str:
        fine = self.scenes["finetune"]  # what is held out is of it
        weights = (digest({"start": self.start}),) if self.config.data is not None else ()
        return "-".join((*(some.fingerprint() for some in (fine, *self.tests.values())), *weights))

    def pretrain_fingerprint(self) -> str:
        return digest({"scenes": self.scenes["pretrain"].fingerprint()})

    def new_model(self) -> Network:
        if self.config.network is None:
            return Segmenter(self.classes, self.config.size).to(self.device)
        return NamedSegmenter(self.config.network, self.classes, Path(self.config.checkpoint or "")).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Two thirds of the pixels are background: at full weight they teach a short training nothing else."""
        weight = torch.ones(self.classes, device=outputs.device)
        weight[0] = self.background
        return F.cross_entropy(outputs, targets, weight=weight, ignore_index=IGNORED)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def overlaps(self, model: nn.Module, some: Scenes) -> Tensor:
        return overlaps(model, some.images, some.masks, self.classes, self.device)

    def validate(self, model: nn.Module) -> float:
        return mean_iou(self.overlaps(model, self.scenes["validation"]))

    def answers(self, model: nn.Module) -> dict[str, Tensor]:
        """Pixels of intersection and union [N, classes, 2] of every scene, by test."""
        return {name: self.overlaps(model, some) for name, some in self.tests.items()}

    def test(self, model: nn.Module) -> dict[str, float]:
        return {name: mean_iou(counts) for name, counts in self.answers(model).items()}
