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
from experiments.segmentation.scenes import compose, photographs

BACKGROUND = 0.2  # weight of a pixel of the background in the loss, against 1 for one of an emoji


@dataclass(frozen=True)
class Config(AnchorOptions):
    """Scenes of emoji. Those of fine-tuning are drawn once for a split; what changes from epoch to epoch are flips."""

    anchor_head = 10.0
    anchor_batch_size = 16

    anchor: Literal["styles", "imagenet"] = "styles"  # trained beforehand on other emoji; or ImageNet's encoder alone
    limit: int | None = None  # use only so many emoji, for a quick try
    epochs: int = 3  # passes over the fine-tuning scenes
    batch_size: int = 16  # scenes in one step
    size: int = 64  # height and width of a scene, in pixels
    scenes: int = 320  # to fine-tune on
    labels: float = 1.0  # the share of these that is kept
    pretrain_scenes: int = 2000  # of the anchor's training
    anchor_epochs: int = 5  # passes over them
    anchor_lr: float = 1e-3  # first learning rate of the anchor
    test_scenes: int = 300  # in each test

    def check(self) -> None:
        super().check()
        check_names("anchor", (self.anchor,), ("styles", "imagenet"))
        if self.size % 32 or self.size > 224:  # 256 * 256 pixels are no uint16
            raise InputError(f"{option('size')} {self.size}: must be a multiple of 32, the encoder's stride, up to 224")
        check_share(self.labels, self.scenes, len(CLASSES))


class SegmentationTask:
    """A `Task` over scenes in memory. No emoji and no photograph is in both a training and a test."""

    name = "segmentation"
    metric = "mIoU"
    by_class = False

    def __init__(self, config: Config, cache: Path, progress: Progress) -> None:
        self.device, self.size = torch.device(config.device), config.size
        emoji = emoji_pictures(cache, progress, alpha=True)
        emoji = emoji if config.limit is None else limit_items(emoji, config.limit, config.split_seed)
        of = split(emoji, config.split_seed)
        self.classes = 1 + len(CLASSES)  # the background is one
        known, new = photographs("train"), photographs("test")
        every, (own, *others) = range(len(emoji.domain_names)), emoji.domain_names
        seed, name = 3 * config.split_seed, str(config.split_seed)
        pool = compose(of["finetune"], [0], known, name, config.scenes, config.size, seed)
        kept, held = (round(share * config.labels * config.scenes) for share in (1, VALIDATION))
        self.scenes = {"finetune": pool.take(0, kept)}
        if config.holds_out:
            self.scenes |= {"validation": pool.take(0, held), "train": pool.take(held, kept)}
        if not config.head_is_new:
            made = compose(of["pretrain"], every, known, name, config.pretrain_scenes, config.size, seed + 1)
            self.scenes["pretrain"] = made
        self.tests = {
            style: compose(of["test"], [number], new, name, config.test_scenes, config.size, seed + 2)
            for number, style in enumerate(emoji.domain_names)
        }
        self.tests |= {kind: self.tests[own].corrupted(kind, config.split_seed) for kind in CORRUPTIONS}
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": (own,), "styles": tuple(others), "corrupted": CORRUPTIONS, "ood": (*others, *CORRUPTIONS)
        }  # fmt: skip
        self.titles: Mapping[str, str] = {"id": f"ID: {own}", "ood": "OOD mean", "styles": "other styles"}
        self.parts: Mapping[str, Part] = {part: Part(len(some.groups), some.draw) for part, some in self.scenes.items()}

    def fingerprint(self) -> str:
        return "-".join(some.fingerprint() for some in (self.scenes["finetune"], *self.tests.values()))

    def pretrain_fingerprint(self) -> str:
        return digest({"scenes": self.scenes["pretrain"].fingerprint()})

    def new_model(self) -> Network:
        return Segmenter(self.classes, self.size).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Much is background: at full weight it teaches a short training nothing else."""
        weight = torch.tensor([BACKGROUND] + [1.0] * len(CLASSES), device=outputs.device)
        return F.cross_entropy(outputs, targets, weight=weight)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        return mean_iou(overlaps(model, self.scenes["validation"], self.classes, self.device))

    def answers(self, model: nn.Module) -> dict[str, Tensor]:
        """Pixels of intersection and union [N, classes, 2] of every scene, by test."""
        return {name: overlaps(model, some, self.classes, self.device) for name, some in self.tests.items()}

    def test(self, model: nn.Module) -> dict[str, float]:
        return {name: mean_iou(counts) for name, counts in self.answers(model).items()}
