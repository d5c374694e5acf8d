"""Digits and tweets with wrong labels: what is learned from, what is chosen on, and what is tested on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from experiments.common.examples import Examples, digits, flipped, generator, split
from experiments.common.progress import Progress
from experiments.common.tweets import Tweets, bags, tweets
from experiments.meta.noise.config import NOISE, SIZES, WORDS, Config, DataSet


class Problem(NamedTuple):
    """Four sets that share no example; the labels of one are partly wrong."""

    noisy: Examples  # the labels as they are given
    right: Tensor  # (noisy,), bool: where the given label is the true one. For the oracle and for reports alone
    clean: Examples
    validation: Examples  # for choices alone
    test: Examples
    classes: int


@dataclass(frozen=True)
class Data:
    """All examples of what is studied, with their true labels."""

    sets: Mapping[DataSet, Examples | Tweets]

    def fingerprint(self) -> str:
        return " ".join(found.fingerprint() for found in self.sets.values())

    def about(self) -> dict:
        labels = {name: found.labels if isinstance(found, Tweets) else found.y for name, found in self.sets.items()}
        most = {name: round(100 * (y.bincount().max() / len(y)).item(), 1) for name, y in labels.items()}
        return {"sizes": {name: dict(SIZES[name]) for name in self.sets}, "most_frequent": most}

    def problem(self, name: DataSet, seed: int) -> Problem:
        """Split anew for each seed; labels of the part "noisy" are flipped, all others stay as they are."""
        found, sizes = self.sets[name], SIZES[name]
        # The words are those of the tweets that are learned from.
        parts = bags(found, sizes, WORDS, seed, 2) if isinstance(found, Tweets) else split(found, sizes, seed)
        x, true = parts.pop("noisy")
        classes = int(true.max()) + 1
        given = flipped(true, classes, NOISE, generator("labels", seed))
        return Problem(Examples(x, given), given == true, **parts, classes=classes)


def load(config: Config, cache: Path, progress: Progress) -> Data:
    return Data({name: {"digits": digits, "tweets": tweets}[name]() for name in config.datasets})
