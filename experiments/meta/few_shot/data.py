"""Frozen features of all emoji in all styles, and what a seed makes of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from experiments.classification.emoji import emoji_pictures
from experiments.common.errors import InputError
from experiments.common.frozen import Features, frozen_features
from experiments.common.progress import Progress
from experiments.meta.few_shot.classes import Classes, classes_of, split
from experiments.meta.few_shot.config import Config
from experiments.meta.few_shot.episodes import Episodes, draw


@dataclass(frozen=True)
class Data:
    """Pictures are numbered style by style, the emoji in one order in each."""

    features: Features
    images: Tensor  # [picture, 3, H, W] uint8
    classes: Classes

    @property
    def emoji(self) -> int:
        return len(self.features.items) // self.styles

    @property
    def styles(self) -> int:
        return len(self.features.style_names)

    def fingerprint(self) -> str:
        return self.features.fingerprint()

    def about(self) -> dict:
        return {
            "emoji": sum(map(len, self.classes.values())),
            "styles": list(self.features.style_names),
            "classes": len(self.classes),
            "parts": {part: len(own) for part, own in split(self.classes, 0).items()},
        }


def load(config: Config, cache: Path, progress: Progress) -> Data:
    features = frozen_features(cache, progress, config.block)
    if config.inputs > (most := features.x[0].numel()):
        raise InputError(f"--inputs {config.inputs}: block {config.block} is given {most} numbers; give at most that")
    count = len(features.items) // len(features.style_names)
    classes = classes_of(features.items[:count], features.groups[:count])
    return Data(features, emoji_pictures(cache, progress).images, classes)


@dataclass(frozen=True)
class World:
    """One seed's: the split, and inputs in which nothing but meta-training pictures has been used."""

    parts: dict[str, Classes]
    inputs: Tensor  # [picture, inputs], all of one norm
    spread: Tensor  # [inputs], standard deviation of each, over meta-training pictures
    emoji: int
    styles: int
    seed: int

    def episodes(self, part: str, count: int, shots: int, queries: int) -> Episodes:
        """The same for every method."""
        generator = random.Random(f"{self.seed}-{part}-{shots}")
        return draw(self.parts[part], self.emoji, self.styles, count, shots, queries, generator)


def world(data: Data, config: Config, seed: int) -> World:
    """Centre each style on the mean of its meta-training pictures, then principal components, then one norm."""
    parts = split(data.classes, seed)
    known = sorted(number for emoji in parts["train"].values() for number in emoji)
    flat = rearrange(data.features.x.float(), "(s n) c h w -> s n (c h w)", s=data.styles)
    inputs, spread = prepared(flat, known, config.inputs)
    return World(parts, inputs, spread, data.emoji, data.styles, seed)


def prepared(flat: Tensor, known: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """`flat` is [style, emoji, features]; `known` are the emoji of meta-training."""
    centred = flat - flat[:, known].mean(dim=1, keepdim=True)
    train = rearrange(centred[:, known], "s n c -> (s n) c").double()
    vectors = torch.linalg.eigh(train.T @ train)[1]  # by rising variance
    axes = vectors.flip(1)[:, :size].float()
    inputs = rearrange(centred @ axes, "s n c -> (s n) c")
    inputs = inputs * size**0.5 / inputs.norm(dim=1, keepdim=True).clamp(min=1e-12)
    spread = rearrange(inputs, "(s n) c -> s n c", s=len(flat))[:, known].flatten(0, 1).std(dim=0)
    return inputs.contiguous(), spread
