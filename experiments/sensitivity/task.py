"""What is fine-tuned: pictures or texts, from an anchor that knows them or from one that does not."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import Tensor

from experiments.classification import study as classification
from experiments.classification.task import Config as ClassificationConfig
from experiments.common.anchor import make_anchor
from experiments.common.comparison import Comparison
from experiments.common.errors import InputError
from experiments.common.method_study import MethodStudy
from experiments.common.methods import FOLLOWS
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.trainer import Trainer

#: Weights that two of them start from.
KNOWS = {"cells": "imagenet", "opinions": "minilm"}


@dataclass(frozen=True)
class Config:
    """Every method at every learning rate, from every split."""

    # Emoji from the first two, tweets from the next two, solar cells from ImageNet's weights, opinions from MiniLM.
    anchor: Literal["styles", "imagenet", "topics", "minilm", "cells", "opinions"] = "styles"
    methods: tuple[str, ...] = ("linear", "adamw", "adamw_warmup", "ftp", "ftp_share")  # and WiSE-FT of AdamW's
    lrs: tuple[float, ...] = (
        2e-5,
        4.5e-5,
        1e-4,
        2.2e-4,
        5e-4,
        1.1e-3,
        2.5e-3,
        5.6e-3,
    )  # ten times that of a linear probe
    seeds: tuple[int, ...] = (0, 1, 2)  # each a split of its own, with its anchor, order and augmentation
    epochs: int | None = None  # passes over the fine-tuning examples; None: 5 over emoji, 8 over cells, 2 over texts
    limit: int | None = None  # use only so many pictures
    archive: str | None = None  # that has the opinions: see experiments.language
    tweets: int = 150  # of each sentiment to fine-tune on
    test_tweets: int = 150  # of each topic and sentiment in the tests

    def check(self) -> None:
        if len(set(self.lrs)) < max(2, len(self.lrs)):
            raise InputError(f"--lrs {' '.join(map(str, self.lrs))}: give at least two, all different")
        if "adamw" not in self.methods or FOLLOWS.keys() & {*self.methods}:
            raise InputError(
                f"--methods {' '.join(self.methods)}: give adamw, which all are compared with, and others that train; "
                "WiSE-FT of AdamW's is always there"
            )
        if (self.anchor == "opinions") != (self.archive is not None):
            raise InputError("--archive FILE goes with --anchor opinions: the source archive of vaderSentiment")
        for seed in self.seeds:
            self.options(seed, self.lrs[0]).check()

    @property
    def of_pictures(self) -> bool:
        return self.anchor in ("styles", "imagenet", "cells")

    def rates(self, method: str) -> list[float]:
        """A head alone wants larger ones."""
        return [10 * lr for lr in self.lrs] if method == "linear" else list(self.lrs)

    def options(self, seed: int, lr: float) -> AnchorOptions:
        """Of one split, at one learning rate."""
        methods = (*self.methods, *(name for name in ("wise", "wise_warmup") if FOLLOWS[name] in self.methods))
        shared = {"methods": methods, "lr": lr, "seeds": (seed,), "split_seed": seed, "weight_decay": 0.0}
        epochs = {"styles": 5, "imagenet": 5, "cells": 8}.get(self.anchor, 2)
        shared |= {"anchor": KNOWS.get(self.anchor, self.anchor), "epochs": self.epochs or epochs}
        if self.of_pictures:
            pictures = "cells" if self.anchor == "cells" else "emoji"
            return ClassificationConfig(**shared, limit=self.limit, pictures=pictures)
        from experiments.language.config import Config as LanguageConfig  # needs the extra `language`

        if self.archive is not None:  # no anchor is trained, so all but the tests may be fine-tuned on
            shared |= {"opinions": self.archive, "pretrain_tweets": 1}
        return LanguageConfig(**shared, bf16=True, tweets=self.tweets, test_tweets=self.test_tweets)


class Splits:
    """The task and the anchor of each split, made when it is asked for."""

    def __init__(self, config: Config, folder: Path, progress: Progress) -> None:
        self._config, self._folder, self._progress = config, folder, progress
        self.of = cache(self._of)

    def fingerprint(self) -> str:
        return " ".join(self.of(seed)[0].task.fingerprint() for seed in self._config.seeds)

    def about(self) -> dict:
        """Facts of the first split, and what each anchor scores where it has a head."""
        first = self.of(self._config.seeds[0])[0].task
        anchors = [self.of(seed)[2] for seed in self._config.seeds]
        known = [{which: anchor[which] for which in ("id", "ood")} for anchor in anchors if "scores" in anchor]
        return self._study().facts(first) | {"metric": first.metric, "anchors": known}

    def _study(self) -> MethodStudy:
        if self._config.of_pictures:
            return classification.COMPARISON
        from experiments.language.study import COMPARISON

        return COMPARISON

    def _of(self, seed: int) -> tuple[Trainer, dict[str, Tensor], dict]:
        options, study = self._config.options(seed, self._config.lrs[0]), self._study()
        task = study.make_task(options, self._folder, self._progress)
        trainer = Trainer(task, self._progress, fit=study.fit)
        return trainer, *make_anchor(trainer, options, self._folder)

    def scores(self, seed: int, method: str, lr: float) -> dict[str, dict[str, float]]:
        """In distribution and out of it, in percent, after one training: its own, and its mean with the anchor's."""
        trainer, start, _ = self.of(seed)
        with TemporaryDirectory() as folder:
            comparison = Comparison(trainer, self._config.options(seed, lr), start, Path(folder))
            found = comparison.fine_tune(method, seed, lr)
        return {result["method"]: {"id": result["id"], "ood": result["ood"]} for result in found.values()}
