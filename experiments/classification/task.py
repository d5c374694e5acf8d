"""Which class is in the picture? Trained on one domain, tested in all."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.classification.data import SHARES, Pictures, fewer, flip_and_shift, hold_out
from experiments.classification.model import Classifier, answers
from experiments.common.errors import InputError
from experiments.common.options import VALIDATION, AnchorOptions, digest, option
from experiments.common.task import Network, Part, percent_right

DROPOUT = 0.2  # before the head
SHIFT = 6  # pixels, augmentation


@dataclass(frozen=True)
class Config(AnchorOptions):
    """The defaults compare at one learning rate; `make demo` has three."""

    # Trained beforehand on other items in all styles, head included; or ImageNet's weights with a new head, left free.
    anchor: Literal["styles", "imagenet"] = "styles"
    # cells: solar cells, mono- and polycrystalline, of elpv-dataset; drawn: shapes on white, inverted and on tiles.
    pictures: Literal["emoji", "cells", "drawn"] = "emoji"
    limit: int | None = None  # use only so many items, for a quick try
    domain: str | None = None  # fine-tune on this one; None: on the first (Twemoji, mono, white)
    shares: tuple[float, float, float] = SHARES  # of the items: to train an anchor, to fine-tune, to test
    labels: float = 1.0  # the share of the items to fine-tune on that is kept
    # Emoji are also tested in a style that no anchor has seen, from the file that `npm pack
    # @iconify-json/fluent-emoji-flat` fetches.
    fluent: str | None = None
    # Pictures of your own in place of these, DIR/DOMAIN/CLASS/*.jpg or png; what follows is for them.
    data: str | None = None
    # By its name in timm, else in torchvision; none: EfficientNet-Lite0 with ImageNet's weights, as for emoji.
    network: str | None = None
    checkpoint: str | None = (
        None  # file of the network's weights; without it they are random, which needs --anchor styles
    )
    projection: int | None = None  # outputs of the network's own last layer, kept below the head: CLIP's
    size: int | None = None  # of the pictures, in pixels; none: 224
    paper: Literal["domainnet", "imagenet"] | None = None  # the paper's settings; what else is given changes them

    def check(self) -> None:
        super().check()
        self._check_own()
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise InputError(f"--shares {' '.join(map(str, self.shares))}: give three above 0 whose sum is 1")
        if self.fluent is not None and self.pictures != "emoji":
            raise InputError(f"--fluent is a style of emoji: leave it out with --pictures {self.pictures}")

    def _check_own(self) -> None:
        own = ("network", "checkpoint", "projection", "size", "paper")
        if self.data is None and (given := [option(name) for name in own if getattr(self, name) is not None]):
            raise InputError(f"{' '.join(given)}: is for pictures of your own; give --data DIR, too")
        if self.data is not None and not Path(self.data).is_dir():
            raise InputError(f"--data {self.data} is not a folder; give the one that has a folder for each domain")
        if self.data is not None and (self.pictures != "emoji" or self.fluent is not None):
            raise InputError("--data is in place of --pictures and --fluent: leave these out")
        if self.network is None and (given := [name for name in own[1:3] if getattr(self, name) is not None]):
            raise InputError(f"{' '.join(map(option, given))}: is for a --network; give its name, too")
        if self.network is not None and self.checkpoint is None and self.anchor == "imagenet":
            raise InputError(f"--anchor imagenet --network {self.network} starts from pre-trained weights, and nothing "
                             "is downloaded: give --checkpoint FILE, or train an anchor: --anchor styles")  # fmt: skip
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise InputError(f"--checkpoint {self.checkpoint} is not a file; give the weights of --network")


def with_validation(parts: dict[str, Pictures], holds_out: bool, seed: int, labels: float = 1.0) -> dict[str, Pictures]:
    """`finetune` in the first domain, that share of it; and its parts `train` and `validation`, if any is held out."""
    parts = {**parts, "finetune": fewer(parts["finetune"].of_domain(0), labels, seed)}
    if holds_out:
        parts["train"], parts["validation"] = hold_out(parts["finetune"], VALIDATION, seed + 1)
    return parts


class ClassificationTask:
    """A `Task` over pictures in memory; `more` are further tests out of distribution, by name."""

    name = "classification"
    facts: Mapping[str, Any] = {}  # further ones for the record

    def __init__(
        self,
        pictures: dict[str, Pictures],
        more: Mapping[str, Pictures] | None = None,
        *,
        device: torch.device,
        dropout: float = DROPOUT,
        by_class: bool = False,
    ) -> None:
        self.by_class = by_class
        self.metric = "balanced accuracy" if by_class else "accuracy"
        self.pictures = pictures
        self.dropout, self.device = dropout, device
        names = pictures["test"].domain_names
        self.tests = {name: pictures["test"].of_domain(number) for number, name in enumerate(names)}
        self.tests |= more or {}
        own, *others = self.tests
        self.columns: Mapping[str, tuple[str, ...]] = {
            "id": (own,), **{name: (name,) for name in others}, "ood": tuple(others)
        }  # fmt: skip
        self.titles: Mapping[str, str] = {"id": f"ID: {own}", "ood": "OOD mean"}
        self.parts: Mapping[str, Part] = {
            part: Part(len(some.items), partial(self._draw, some)) for part, some in pictures.items() if part != "test"
        }

    def _draw(self, pictures: Pictures, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return flip_and_shift(pictures.images[chosen], generator, SHIFT), pictures.labels[chosen]

    def pixels(self, images: Tensor) -> Tensor:
        """What `Pictures.images` stands for."""
        return images

    def among(self, some: Pictures) -> Tensor | None:
        """The classes that are asked for, if not all."""

    def fingerprint(self) -> str:
        tests = list(self.tests.values())[len(self.pictures["test"].domain_names) :]
        return "-".join(part.fingerprint() for part in (*self.pictures.values(), *tests))

    def pretrain_fingerprint(self) -> str:
        drawn = {"pictures": self.pictures["pretrain"].fingerprint(), "dropout": self.dropout, "shift": SHIFT}
        return digest(drawn)

    def new_model(self) -> Network:
        test = self.pictures["test"]
        return Classifier(len(test.classes), test.images.shape[-1], self.dropout).to(self.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()

    def validate(self, model: nn.Module) -> float:
        held_out = self.pictures["validation"]
        return percent_right(self._answer(model, held_out), held_out.labels, self.by_class)

    def _answer(self, model: nn.Module, some: Pictures) -> Tensor:
        return answers(model, some.images, self.device, self.pixels, self.among(some))

    def answers(self, model: nn.Module) -> dict[str, Tensor]:
        """The class that each test example is given, by test set."""
        return {name: self._answer(model, some) for name, some in self.tests.items()}

    def test(self, model: nn.Module) -> dict[str, float]:
        found = self.answers(model)
        return {name: percent_right(found[name], some.labels, self.by_class) for name, some in self.tests.items()}
