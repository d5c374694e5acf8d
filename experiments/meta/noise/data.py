"""Digits and tweets with wrong labels: what is learned from, what is chosen on, and what is tested on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.common.digits import digits
from experiments.common.draws import generator
from experiments.common.examples import Examples, split
from experiments.common.tweets import Tweets, bag_of_words, tweets
from experiments.meta.noise.config import SIZES, Config, DataSet, Kind


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
    """All examples, with their true labels; what is not studied is None."""

    config: Config
    digits: Examples | None
    tweets: Tweets | None

    def fingerprint(self) -> str:
        return " ".join(part.fingerprint() for part in (self.digits, self.tweets) if part is not None)

    def about(self) -> dict:
        labels = {"digits": self.digits and self.digits.y, "tweets": self.tweets and self.tweets.labels}
        counts = {name: found.bincount() for name, found in labels.items() if found is not None}
        most = {name: round(100 * (count.max() / count.sum()).item(), 1) for name, count in counts.items()}
        return {"sizes": {name: dict(SIZES[name]) for name in self.config.datasets}, "most_frequent": most}

    def problem(self, name: DataSet, kind: Kind, seed: int) -> Problem:
        """Split anew for each seed."""
        parts = self._digits(seed) if name == "digits" else self._tweets(seed)
        return with_noise(parts, self.config.noise, kind, seed)

    def _digits(self, seed: int) -> dict[str, Examples]:
        assert self.digits is not None
        return split(self.digits, SIZES["digits"], seed)

    def _tweets(self, seed: int) -> dict[str, Examples]:
        """The words are those of the tweets that are learned from."""
        assert self.tweets is not None
        texts = self.tweets.texts
        parts = split(Examples(torch.arange(len(texts)), self.tweets.labels), SIZES["tweets"], seed)
        own = {name: [texts[place] for place in part.x.tolist()] for name, part in parts.items()}
        learned, *others = bag_of_words(
            own["noisy"] + own["clean"], self.config.features, own["validation"], own["test"]
        )
        rows = [*learned.split([len(own["noisy"]), len(own["clean"])]), *others]
        return {name: Examples(x, part.y) for (name, part), x in zip(parts.items(), rows, strict=True)}


def load(config: Config) -> Data:
    """Only what is studied."""
    return Data(
        config,
        digits() if "digits" in config.datasets else None,
        tweets() if "tweets" in config.datasets else None,
    )


def with_noise(parts: Mapping[str, Examples], share: float, kind: Kind, seed: int) -> Problem:
    """Labels of the part "noisy" are flipped; those of "clean", "validation" and "test" stay as they are."""
    x, true = parts["noisy"]
    classes = int(true.max()) + 1
    given = flipped(true, classes, share, kind, generator("labels", seed))
    return Problem(
        Examples(x, given), given == true, parts["clean"], parts["validation"], parts["test"], classes
    )  # fmt: skip


def flipped(labels: Tensor, classes: int, share: float, kind: Kind, drawn: torch.Generator) -> Tensor:
    """Labels of which round(share * n) are wrong: another class by chance (uniform), or the next one (pair)."""
    wrong = torch.randperm(len(labels), generator=drawn)[: round(share * len(labels))]
    steps = torch.ones_like(wrong)
    if kind == "uniform":
        steps = torch.randint(1, classes, wrong.shape, generator=drawn)
    made = labels.clone()
    made[wrong] = (labels[wrong] + steps) % classes
    return made
