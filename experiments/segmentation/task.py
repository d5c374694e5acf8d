"""Which class does every pixel show? Trained on scenes in one style, tested in all, and on corrupted ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.classification.data import Pictures
from experiments.common.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from experiments.common.errors import InputError
from experiments.common.options import AnchorOptions, digest, option
from experiments.common.task import Part
from experiments.segmentation.backgrounds import backgrounds
from experiments.segmentation.model import Segmenter, mean_iou
from experiments.segmentation.scenes import Scenes, scenes

BACKGROUND = 0.2  # weight of a pixel of the background in the loss, against 1 for one of an emoji


@dataclass(frozen=True)
class Config(AnchorOptions):
    """Scenes of emoji, drawn anew for each epoch: it is no pass over the same examples but a number of new ones."""

    anchor_head = 10.0
    anchor_batch_size = 16

    # Trained beforehand on scenes of other emoji in all styles, head included; or ImageNet's encoder with a new head.
    anchor: Literal["styles", "imagenet"] = "styles"
    limit: int | None = None  # use only so many emoji, for a quick try
    epochs: int = 6  # passes, each over new scenes
    lr: float = 6e-4  # first learning rate; it falls to 0 as a cosine
    batch_size: int = 16  # scenes in one step
    anchor_lr: float = 5e-4  # first learning rate of the anchor
    size: int = 96  # height and width of a scene, in pixels
    scenes: int = 320  # in an epoch of fine-tuning
    pretrain_scenes: int = 960  # in an epoch of the anchor's training
    validation_scenes: int = 96  # held out in distribution, for learning rates
    test_scenes: int = 96  # in each test set

    def check(self) -> None:
        super().check()
        if self.size % 32:
            raise InputError(f"{option('size')} {self.size}: must be a multiple of 32, the stride of the encoder")


class SegmentationTask:
    """A `Task` over scenes. Parts of the pictures are parts of the scenes: no emoji is in scenes of two of them.

    Test scenes have backgrounds of their own; those of validation are the ones that are trained on.
    """

    name = "segmentation"
    metric = "mIoU"

    def __init__(self, pictures: dict[str, Pictures], config: Config) -> None:
        """`train` and `validation`, parts of `finetune`, may be absent. Counts of training are those of an epoch."""
        self.device, self.seed, size = torch.device(config.device), config.split_seed, config.size
        self.counts = {"pretrain": config.pretrain_scenes, "finetune": config.scenes, "train": config.scenes}
        self.counts |= {"validation": config.validation_scenes, "test": config.test_scenes}
        names = pictures["test"].domain_names
        self.style_names = names
        self.classes = 1 + len(pictures["test"].classes)  # the background is one
        known, new = (backgrounds(part, 2 * size) for part in ("train", "test"))
        self.scenes: dict[str, Scenes] = {}
        for number, part in enumerate(self.counts):
            if part in pictures:
                drawn = pictures[part] if part in ("pretrain", "test") else pictures[part].of_domain(0)
                behind = new if part == "test" else known
                self.scenes[part] = scenes(drawn, behind, size=size, seed=len(self.counts) * self.seed + number)
        own, *others = names
        corrupted = {kind: tuple(f"{kind} {severity}" for severity in SEVERITIES) for kind in CORRUPTIONS}
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": (own,),
            **{name: (name,) for name in others},
            "ood": tuple(others),
            **corrupted,
            "corrupted": tuple(score for scores in corrupted.values() for score in scores),
        }
        self.titles: Mapping[str, str] = {
            "id": f"ID: {own}",
            "ood": "other styles",
            "corrupted": "corrupted mean",
        }
        self.parts: Mapping[str, Part] = {
            part: Part(self.counts[part], partial(self._draw, some))
            for part, some in self.scenes.items()
            if part != "test"
        }

    def _draw(self, some: Scenes, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scenes are never shown twice: every batch has a seed of its own, which the generator draws."""
        return replace(some, seed=int(torch.randint(2**62, (), generator=generator))).draw(chosen)

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor]:
        return self._all("validation")

    @cached_property
    def _tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All that `test` looks at. What is corrupted are the scenes in the style that is fine-tuned on."""
        tests = {name: self._all("test", number) for number, name in enumerate(self.style_names)}
        images, masks = tests[self.style_names[0]]
        for number, kind in enumerate(CORRUPTIONS):
            seed = len(CORRUPTIONS) * self.seed + number
            for severity in SEVERITIES:
                tests[f"{kind} {severity}"] = corrupt(images, kind, severity, seed), masks
        return tests

    def _all(self, part: str, style: int = 0) -> tuple[Tensor, Tensor]:
        return replace(self.scenes[part], styles=(style,)).draw(torch.arange(self.counts[part]))

    def _described(self, part: str) -> tuple[str, int, str]:
        return part, self.counts[part], self.scenes[part].fingerprint()

    def fingerprint(self) -> str:
        return digest({"scenes": [self._described(part) for part in self.scenes]})

    def pretrain_fingerprint(self) -> str:
        return digest({"scenes": self._described("pretrain")})

    def new_model(self) -> Segmenter:
        return Segmenter(self.classes, self.scenes["test"].size).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Two thirds of the pixels are background: at full weight they teach a short training nothing else."""
        weight = torch.ones(self.classes, device=outputs.device)
        weight[0] = BACKGROUND
        return F.cross_entropy(outputs, targets, weight=weight)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        return self._mean_iou(model, self._validation)

    def test(self, model: nn.Module) -> dict[str, float]:
        return {name: self._mean_iou(model, shown) for name, shown in self._tests.items()}

    def shown(self, name: str) -> tuple[Tensor, Tensor]:
        """Pictures and masks of one of the test sets."""
        return self._tests[name]

    def _mean_iou(self, model: nn.Module, shown: tuple[Tensor, Tensor]) -> float:
        return mean_iou(model, *shown, classes=self.classes, device=self.device)
