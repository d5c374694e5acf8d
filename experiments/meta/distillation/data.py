"""The two tasks, digits and the categories of emoji, and a few pictures a class that are not learned through training.

A seed decides which pictures are for what.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Generator, Tensor

from experiments.classification import data as styles
from experiments.classification.emoji import emoji_pictures
from experiments.common.examples import Examples, digits, split
from experiments.common.progress import Progress

NAMES = ("digits", "emoji")
DIGITS = {"train": 1000, "validation": 300, "test": 497}
VALIDATION = 0.2  # share of the emoji that are not for the test
SIZE = 16  # pixels of an emoji, in each direction


@dataclass(frozen=True)
class Task:
    """Pictures [N, channels, height, width] in [0, 1], in three parts."""

    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    def of_class(self, label: int) -> Tensor:
        return self.train.x[self.train.y == label]

    def standardised(self, x: Tensor) -> Tensor:
        """What a network sees: each channel less its mean over the training pictures, in units of their deviation."""
        mean, deviation = self._scale
        return (x - mean) / deviation

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        return self.train.x.mean((0, 2, 3))[:, None, None], self.train.x.std()


@dataclass(frozen=True)
class Data:
    """Both sets of pictures; emoji in all styles, since the split is that of all."""

    digits: Examples | None
    emoji: styles.Pictures | None

    def task(self, name: str, seed: int) -> Task:
        if name == "digits":
            assert self.digits is not None
            return Task(tuple("0123456789"), **split(self.digits, DIGITS, seed))
        assert self.emoji is not None
        return emoji_task(self.emoji, seed)

    def fingerprint(self) -> str:
        parts = [str(part and part.fingerprint()) for part in (self.digits, self.emoji)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def about(self) -> dict:
        tasks = {name: self.task(name, 0) for name in NAMES if getattr(self, name) is not None}
        return {
            name: {
                "classes": list(task.classes),
                "shape": list(task.shape),
                **{part: len(getattr(task, part).y) for part in ("train", "validation", "test")},
            }
            for name, task in tasks.items()
        }


def emoji_task(pictures: styles.Pictures, seed: int) -> Task:
    """Of the first style: near-duplicates (one group) are always in one part."""
    test = styles.split(pictures, seed)["test"]
    own, tested = pictures.of_domain(0), set(test.items)
    rest = own.select(torch.tensor([i for i, item in enumerate(own.items) if item not in tested]))
    # Class by class: held out together, a large group of one class is owed by the next, which may be left out.
    of_classes = [(rest.labels == label).nonzero().flatten() for label in range(len(pictures.classes))]
    held_out = [styles.hold_out(rest.select(index), VALIDATION, seed) for index in of_classes]
    train, validation = (_shrunk(*parts) for parts in zip(*held_out, strict=True))
    return Task(pictures.classes, train, validation, _shrunk(test.of_domain(0)))


def _shrunk(*parts: styles.Pictures) -> Examples:
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return Examples(F.avg_pool2d(images.float() / 255, images.shape[-1] // SIZE), labels)


def load(names: tuple[str, ...], cache: Path, progress: Progress) -> Data:
    numbers = digits()
    square = Examples(numbers.x.reshape(-1, 1, 8, 8), numbers.y)
    return Data(square if "digits" in names else None, emoji_pictures(cache, progress) if "emoji" in names else None)


def random_pictures(task: Task, per_class: int, generator: Generator) -> Tensor:
    """[classes * per_class, channels, height, width]."""
    chosen = []
    for label in range(len(task.classes)):
        own = task.of_class(label)
        chosen.append(own[torch.randperm(len(own), generator=generator)[:per_class]])
    return torch.cat(chosen)


def k_means(task: Task, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of each class alone: the centroids, and for each the real picture of its cluster that is nearest to it."""
    centroids, nearest = [], []
    for label in range(len(task.classes)):
        own = task.of_class(label)
        flat = own.flatten(1)
        made = KMeans(per_class, n_init=4, random_state=seed)  # pyright: ignore[reportArgumentType]
        fitted = made.fit(flat.numpy())
        centers, cluster = torch.from_numpy(fitted.cluster_centers_).float(), torch.from_numpy(fitted.labels_)
        for number, center in enumerate(centers):
            members = own[cluster == number]
            nearest.append(members[(members.flatten(1) - center).square().sum(1).argmin()])
        centroids.append(centers.reshape(-1, *task.shape).clamp(0, 1))  # rounding may leave [0, 1]
    return torch.cat(centroids), torch.stack(nearest)
