"""What is fine-tuned: pictures or texts, from an anchor that knows them or from one that does not."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from torch import Tensor

from experiments.classification import study as classification
from experiments.classification.task import Config as ClassificationConfig
from experiments.common.anchor import make_anchor
from experiments.common.comparison import Comparison, followers
from experiments.common.errors import InputError
from experiments.common.method_study import MethodStudy
from experiments.common.methods import FASTER, FOLLOWS, METHODS
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.trainer import Trainer
from experiments.sensitivity.summary import described, named, written

#: What is compared unless --methods says otherwise; on texts LoRA, too.
USUAL = (
    "linear", "adamw", "adamw_warmup", "adamw_layers", "ema", "lp_ft", "l2sp", "spd", "ftp", "wise", "wise_ftp",
    "lines", "model_stock", "soup",
)  # fmt: skip
#: Weights that two of them start from.
KNOWS = {"cells": "imagenet", "drawn": "imagenet", "opinions": "minilm"}
#: To train an anchor, to fine-tune, to test: at least 500 groups of each kind are tests.
SHARES = {"emoji": (0.25, 0.3, 0.45), "cells": (0.05, 0.35, 0.6), "drawn": (0.05, 0.35, 0.6)}


@dataclass(frozen=True)
class Grid:
    """Every method at every learning rate, from every split."""

    usual: ClassVar[tuple[str, ...]] = USUAL  # where no methods are given

    anchor: str = "styles"  # where fine-tuning starts
    methods: tuple[str, ...] = ()  # of those of experiments.classification; none given: most of them
    # A linear probe, LoRA and FTP have ten times that.
    lrs: tuple[float, ...] = (2e-5, 6e-5, 2e-4, 6e-4, 2e-3)
    # Methods, each with one more rate: `--wider adamw 1e-5 ftp 5e-2`, in the same --out. Where a choice is at the edge,
    # and for AdamW halfway to the rates beside its best one, since its peak is narrow.
    wider: tuple[tuple[str, float], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # each a split of its own, with its anchor, order and augmentation
    # Passes over the examples. None: 5 over emoji and shapes, 8 over cells, 3 or 12 over scenes, 2 over texts.
    epochs: int | None = None
    labels: float = 1.0  # the share of the fine-tuning examples that is kept, with so many more passes
    limit: int | None = None  # use only so many pictures

    def check(self) -> None:
        if len(set(self.lrs)) < max(2, len(self.lrs)):
            raise InputError(f"--lrs {' '.join(map(str, self.lrs))}: give at least two, all different")
        if "adamw" not in self.all_methods:
            raise InputError(f"--methods {' '.join(self.methods)}: give adamw too, which all are compared with")
        self.check_data()
        rates = {name: self.rates(name) for name in self.all_methods if name not in FOLLOWS}
        if wrong := sorted({name for name, _ in self.wider} - rates.keys()):
            raise InputError(f"--wider {' '.join(wrong)}: name methods of this run that are trained")
        if wrong := [lrs for lrs in rates.values() if len(set(lrs)) < len(lrs) or lrs[0] <= 0]:
            raise InputError(f"--lrs, --wider: the rates {' '.join(map(str, wrong[0]))} must be above 0, and different")

    def check_data(self) -> None:
        if not 0 < self.labels <= 1:
            raise InputError(f"--labels {self.labels}: must be above 0, and at most 1")
        for seed in self.seeds:
            self.options(seed, self.lrs[0]).check()

    @property
    def all_methods(self) -> tuple[str, ...]:
        return self.methods or self.usual

    def rates(self, method: str) -> list[float]:
        own = [lr for name, lr in self.wider if name == method]
        return sorted([*(FASTER.get(method, 1.0) * lr for lr in self.lrs), *own])

    def options(self, seed: int, lr: float) -> AnchorOptions:
        """Of one split, at one learning rate."""
        raise NotImplementedError

    def shared(self, seed: int, lr: float, epochs: int) -> dict[str, Any]:
        """What the options of all tasks have; so many passes unless others are given."""
        passes = round((self.epochs or epochs) / self.labels)
        return {
            "methods": self.all_methods, "lr": lr, "seeds": (seed,), "split_seed": seed, "weight_decay": 0.0,
            "epochs": passes,
        }  # fmt: skip

    def study(self) -> MethodStudy:
        """The task."""
        raise NotImplementedError

    def priors(self) -> dict[str, dict]:
        """What sampling hides, for the record."""
        return {}


@dataclass(frozen=True)
class Config(Grid):
    """Pictures and texts."""

    # Emoji from the first two, tweets from the next two, solar cells and shapes from ImageNet's weights, opinions from
    # MiniLM.
    anchor: Literal["styles", "imagenet", "topics", "minilm", "cells", "drawn", "opinions"] = "styles"
    domain: str | None = None  # fine-tune on this one: poly, newspapers; None: on the first of the data
    archive: str | None = None  # that has the opinions: see experiments.language
    fluent: str | None = None  # a further style of emoji: see experiments.classification
    tweets: int = 150  # of each sentiment to fine-tune on
    test_tweets: int = 150  # of each topic and sentiment in the tests

    def check_data(self) -> None:
        if self.labels != 1 and self.anchor not in ("styles", "imagenet"):
            raise InputError(f"--labels {self.labels}: goes with --anchor styles or imagenet, not {self.anchor}")
        if (self.anchor == "opinions") != (self.archive is not None):
            raise InputError("--archive FILE goes with --anchor opinions: the source archive of vaderSentiment")
        if self.fluent is not None and self.anchor not in ("styles", "imagenet"):
            raise InputError(
                f"--fluent is a style of emoji: it goes with --anchor styles or imagenet, not {self.anchor}"
            )
        super().check_data()

    @property
    def of_pictures(self) -> bool:
        return self.anchor in ("styles", "imagenet", *SHARES)

    @property
    def all_methods(self) -> tuple[str, ...]:
        return super().all_methods if self.methods or self.of_pictures else (*USUAL, "lora")

    def options(self, seed: int, lr: float) -> AnchorOptions:
        epochs = {"styles": 5, "imagenet": 5, "drawn": 5, "cells": 8}.get(self.anchor, 2)
        shared = self.shared(seed, lr, epochs)
        shared |= {"anchor": KNOWS.get(self.anchor, self.anchor), "domain": self.domain}
        if self.of_pictures:
            pictures = self.anchor if self.anchor in ("cells", "drawn") else "emoji"
            return ClassificationConfig(
                **shared, limit=self.limit, pictures=pictures, shares=SHARES[pictures], fluent=self.fluent,
                labels=self.labels,
            )  # fmt: skip
        from experiments.language.config import Config as LanguageConfig  # needs the extra `language`

        if self.archive is not None:  # no anchor is trained, so all but the tests may be fine-tuned on
            shared |= {"opinions": self.archive, "pretrain_tweets": 1}
        return LanguageConfig(**shared, bf16=True, tweets=self.tweets, test_tweets=self.test_tweets)

    def study(self) -> MethodStudy:
        if self.of_pictures:
            return classification.COMPARISON
        from experiments.language.study import COMPARISON

        return COMPARISON

    def priors(self) -> dict[str, dict]:
        if self.of_pictures:
            return {}
        from experiments.language.config import Config as LanguageConfig
        from experiments.language.data import priors

        options = self.options(self.seeds[0], 1.0)
        assert isinstance(options, LanguageConfig)
        return {"priors": priors(options)}


class Splits:
    """The task and the anchor of each split, made when it is asked for."""

    def __init__(self, config: Grid, folder: Path, progress: Progress) -> None:
        self._config, self._folder, self._progress = config, folder, progress
        self.of = cache(self._of)

    def fingerprint(self) -> str:
        return " ".join(self.of(seed)[0].task.fingerprint() for seed in self._config.seeds)

    def about(self) -> dict:
        """Facts of the first split, what each anchor scores where it has a head, and the classes and groups of the
        test examples of each split, that in distribution first."""
        first = self.of(self._config.seeds[0])[0].task
        anchors = [self.of(seed)[2] for seed in self._config.seeds]
        known = [{which: anchor[which] for which in ("id", "ood")} for anchor in anchors if "scores" in anchor]
        names, tests = (*first.columns["id"], *first.columns["ood"]), {}
        for seed in self._config.seeds:
            sets = self.of(seed)[0].task.tests
            tests[str(seed)] = {name: described(sets[name]) for name in names}
        about = {"metric": first.metric, "by_class": first.by_class, "anchors": known, "tests": tests}
        return self._config.study().facts(first) | about | self._config.priors()

    def _of(self, seed: int) -> tuple[Trainer, dict[str, Tensor], dict]:
        options, study = self._config.options(seed, self._config.lrs[0]), self._config.study()
        task = study.make_task(options, self._folder, self._progress)
        trainer = Trainer(task, self._progress, fit=study.fit)
        return trainer, *make_anchor(trainer, options, self._folder)

    def answers(self, seed: int, method: str, lr: float, strength: float | None = None) -> dict[str, dict[str, str]]:
        """The classes that all test examples are given after one training, by test set: by the trained weights, and by
        those that other methods make of them, with each share."""
        trainer, start, _ = self.of(seed)
        options = self._config.options(seed, lr)
        with TemporaryDirectory() as folder:
            comparison = Comparison(trainer, options, start, Path(folder))
            fits = [comparison.fit(method, seed, lr, f"{method}, seed {seed}", strength=strength)]
            found = {named(method, strength): trainer.task.answers(fits[0].model)}
            for follower in followers(method, options.methods):
                for share in METHODS[follower].strengths or (None,):
                    mixed = comparison.mixed(follower, fits, seed, lr, share)
                    found[named(follower, share)] = trainer.task.answers(mixed)
        return {name: {test: written(given) for test, given in by_test.items()} for name, by_test in found.items()}
