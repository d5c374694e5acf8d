"""Data sets and weights of the recipes in the layout of the real ones, a few small pictures each."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

STYLES = ("real", "sketch", "painting", "infograph", "clipart")
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")


def picture(file: Path, number: int, side: int = 40) -> None:
    """Noise whose mean colour tells the number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 60, (side, side, 3))
    pixels[..., number % 3] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(file)


PERCENTS = (100, 10)


def domainnet(root: Path, classes: int = 3, train: int = 4) -> Path:
    """A list of each kind; the pictures to train on are as many whatever the share, but not the same."""
    names = [f"class_{number}" for number in range(classes)]

    def write(name: str, style: str, count: int, start: int) -> None:
        lines = []
        for label, title in enumerate(names):
            for number in range(start, start + count):
                picture(root / style / title / f"{number}.jpg", label)
                lines.append(f"{style}/{title}/{number}.jpg {label}\n")
        (root / name).write_text("".join(lines))

    for start, percent in enumerate(PERCENTS):
        write(f"real_train_{percent}_percent_split.txt", "real", train, start)
        write(f"real_val_{percent}_percent_split.txt", "real", 1, 50 + start)
    for style in STYLES:
        write(f"{style}_test.txt", style, 2, 100)
    return root


def by_class(root: Path, folders: Iterable[str], count: int) -> None:
    """A folder of pictures for each class."""
    for label, folder in enumerate(folders):
        for number in range(count):
            picture(root / folder / f"{number}.JPEG", label)


def imagenet(root: Path) -> Path:
    """Four classes, of which -A and -R have two."""
    for name, count in (("train", 3), ("val", 1), ("imagenet-sketch", 1)):
        by_class(root / name, WNIDS, count)
    by_class(root / "imagenetv2", "0123", 1)
    by_class(root / "imagenet-a", WNIDS[1:3], 2)
    by_class(root / "imagenet-r", WNIDS[2:], 2)
    return root


FEATURES = 32  # of the classifier, which is CLIP's projection for some recipes


def weights(file: Path, model: str, **options: int) -> Path:
    """As if pre-trained; with timm's classifier, which a recipe leaves out."""
    torch.manual_seed(7)
    torch.save(timm.create_model(model, pretrained=False, num_classes=FEATURES, **options).state_dict(), file)
    return file


def head(file: Path, classes: int) -> Path:
    """As if made of CLIP's texts."""
    torch.manual_seed(8)
    torch.save(torch.randn(classes, FEATURES), file)
    return file
