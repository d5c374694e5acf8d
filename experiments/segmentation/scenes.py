"""Scenes of one to four emoji over photographs, with the class of every pixel. The photographs lie in scikit-image and
scikit-learn, whose files alone are read; training and tests have different ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from experiments.classification.data import Pictures
from experiments.common.corruptions import SEVERITIES, corrupt
from experiments.common.errors import folder_of

PHOTOGRAPHS = {
    "train": ("skimage/data/chelsea.png", "skimage/data/coffee.png", "skimage/data/hubble_deep_field.jpg",
              "skimage/data/brick.png", "skimage/data/grass.png", "sklearn/datasets/images/flower.jpg"),
    "test": ("skimage/data/astronaut.png", "skimage/data/rocket.jpg", "skimage/data/camera.png",
             "skimage/data/gravel.png", "skimage/data/coins.png", "sklearn/datasets/images/china.jpg"),
}  # fmt: skip
resized = partial(F.interpolate, mode="bilinear", antialias=True)  # pictures, to a height and width
SHORTER = 256  # pixels of a photograph's shorter side; a scene shows a square of it
MOST = 4  # emoji in a scene
SIDES = (0.5, 0.9)  # of an emoji, as a share of the scene's
BEYOND = 0.1  # the share of an emoji's side that may be outside the scene


@dataclass(frozen=True)
class Scenes:
    """Those of one part or test. A group is a scene, whatever its style or corruption."""

    images: Tensor  # [N, 3, size, size] uint8
    masks: Tensor  # [N, size, size] uint8: 0, or 1 + the class on top
    groups: tuple[str, ...]

    def take(self, first: int, last: int) -> "Scenes":
        return Scenes(self.images[first:last], self.masks[first:last], self.groups[first:last])

    def draw(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some of them, every second one mirrored on average."""
        images, masks = self.images[chosen], self.masks[chosen].long()
        mirrored = rearrange(torch.rand(len(chosen), generator=generator) < 0.5, "n -> n 1 1")
        images = torch.where(rearrange(mirrored, "n h w -> n 1 h w"), images.flip(-1), images)
        return images, torch.where(mirrored, masks.flip(-1), masks)

    def corrupted(self, kind: str, seed: int) -> "Scenes":
        """Scene i by severity 1 + i mod 5."""
        images = self.images.clone()
        for number, severity in enumerate(SEVERITIES):
            rows = slice(number, None, len(SEVERITIES))
            images[rows] = corrupt(images[rows], kind, severity, seed)
        return replace(self, images=images)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes() + self.masks.numpy().tobytes()).hexdigest()[:16]


def photographs(part: str) -> list[Tensor]:
    """Those of `train` or `test`, [3, h, w]."""
    found = []
    for name in PHOTOGRAPHS[part]:
        package, _, file = name.partition("/")
        with Image.open(folder_of(package, "scenes") / file) as opened:
            sides = [round(SHORTER * side / min(opened.size)) for side in opened.size]
            smaller = np.array(opened.convert("RGB").resize(sides, Image.Resampling.BICUBIC))
        found.append(rearrange(torch.from_numpy(smaller), "h w rgb -> rgb h w").float())
    return found


def compose(
    emoji: Pictures, styles: Sequence[int], behind: Sequence[Tensor], name: str, count: int, size: int, seed: int,
    most: int = MOST,
) -> Scenes:  # fmt: skip
    """Scenes of emoji with an alpha channel, each in one of the styles; those of other styles differ in that alone.
    Classes take turns in a random order, so that any stretch of the scenes has about as many of each."""
    drawn = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=drawn))

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=drawn))

    labels = emoji.of_domain(0).labels
    drawings = [emoji.of_domain(style).images.float() for style in range(len(emoji.domain_names))]
    members = [(labels == label).nonzero().flatten().tolist() for label in range(len(emoji.classes))]
    turn: list[int] = []
    images, masks = torch.empty(count, 3, size, size), torch.zeros(count, size, size, dtype=torch.uint8)
    for image, mask in zip(images, masks, strict=True):
        photograph, style = behind[number(len(behind))], drawings[styles[number(len(styles))]]
        image.copy_(cut(photograph, between(0.3, 1), between(0, 1), between(0, 1), size))
        for _ in range(1 + number(most)):
            turn = turn or torch.randperm(len(members), generator=drawn).tolist()
            label = turn.pop()
            item, side = members[label][number(len(members[label]))], round(size * between(*SIDES))
            low, high = -BEYOND * side, size - (1 - BEYOND) * side
            paste(image, mask, style[item], 1 + label, side, round(between(low, high)), round(between(low, high)))
    groups = tuple(f"{name}.{place}" for place in range(count))
    return Scenes(images.round().clamp(0, 255).to(torch.uint8), masks, groups)


def cut(photograph: Tensor, share: float, x: float, y: float, size: int) -> Tensor:
    """A square of so large a share of the shorter side, from its place among all that there are."""
    height, width = photograph.shape[1:]
    side = round(share * min(height, width))
    top, left = round(y * (height - side)), round(x * (width - side))
    return resized(photograph[None, :, top : top + side, left : left + side], (size, size))[0]


def paste(image: Tensor, mask: Tensor, drawing: Tensor, label: int, side: int, top: int, left: int) -> None:
    """Put a drawing [4, h, w], colours on white and alpha, over a scene, which may cut it."""
    colours = (drawing[:3] + drawing[3:] - 255).clamp(min=0)  # times alpha; both were resized on their own
    smaller = resized(torch.cat([colours, drawing[3:]])[None], (side, side))[0]
    rows, columns = (slice(max(0, at), at + side) for at in (top, left))
    inside = smaller[:, max(0, -top) :, max(0, -left) :][:, : len(mask) - rows.start, : len(mask) - columns.start]
    over = inside[3:] / 255
    image[:, rows, columns] = inside[:3] + (1 - over) * image[:, rows, columns]
    mask[rows, columns][over[0] >= 0.5] = label
