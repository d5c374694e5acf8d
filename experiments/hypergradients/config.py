"""What is compared, on which tasks, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names

RADIUS_LR = 1e-2  # FTP's default
_PICTURES = {"shares": (0.25, 0.4, 0.35), "anchor_epochs": 3}
_TEXTS = {"anchor": "minilm", "tweets": 120, "test_tweets": 60, "pretrain_tweets": 1, "length": 24}
TASKS: Mapping[str, tuple[str, str, dict]] = {  # what is learned from where, the module of its options, and options
    "styles": ("emoji, from a network trained on all styles", "classification.task", {"anchor": "styles", **_PICTURES}),
    "minilm": ("tweets, from MiniLM as it comes", "language.config", _TEXTS),
    "imagenet": ("emoji, from ImageNet's weights", "classification.task", {"anchor": "imagenet", **_PICTURES}),
    "scenes": ("masks of emoji in scenes, from a network trained on all styles", "segmentation.task", {}),
}


@dataclass(frozen=True)
class Way:
    """Of fine-tuning: what moves the radii. Without `gradient`, `every` and `depth` there are none."""

    title: str
    gradient: Any = None  # FTP's, paper or exact
    every: int = 0  # the closed form with the gradient of a validation batch, once in so many steps
    depth: int = 0  # a full hypergradient through so many steps, once in as many
    part: str = "train"  # whose loss moves the radii
    labels: str = "train"  # what is trained on; "finetune" are these and those of validation


_FREE = {"adamw": ("AdamW", None), "paper": ("FTP, paper", "paper"), "exact": ("FTP, exact", "exact")}
WAYS: Mapping[str, Way] = {
    **{name: Way(*of) for name, of in _FREE.items()},
    **{f"{name}_all": Way(f"{title}, all labels", form, labels="finetune") for name, (title, form) in _FREE.items()},
    **{f"every{n}": Way(f"one step, validation, every {n}", every=n, part="validation") for n in (1, 2, 4, 8, 16)},
    "train4": Way("full, K = 4, training", depth=4),
    "validation4": Way("full, K = 4, validation", depth=4, part="validation"),
}


@dataclass(frozen=True)
class Config:
    """Short trainings at one learning rate, without weight decay and dropout."""

    tasks: tuple[str, ...] = tuple(TASKS)
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)  # steps K that are differentiated through; the last is the measure
    stages: tuple[int, ...] = (17, 24, 32)  # steps after which derivatives are compared, on the first three splits
    ways: tuple[str, ...] = tuple(WAYS)  # of fine-tuning
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # each a split of its own, with its anchor, order and augmentation
    steps: int = 32  # of a fine-tuning
    batch_size: int = 8
    lr: float = 6e-4  # first learning rate; it falls to 0 as a cosine
    items: int = 800  # emoji of styles and imagenet, at most

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        check_fields(self)
        check_names("tasks", self.tasks, TASKS)
        check_names("ways", self.ways, WAYS)
        depths, stages, ways = [*self.depths], [*self.stages], " ".join(self.ways)
        if not {"paper", "paper_all"} <= {*self.ways}:
            raise InputError(f"--ways {ways}: give paper and paper_all too, which all are compared with")
        if [depths, stages] != [sorted(depths), sorted(stages)] or depths[0] != 1 or stages[-1] > self.steps:
            raise InputError(f"--depths {depths} --stages {stages}: must rise, from 1, and to {self.steps} at most")
        if depths[-1] >= stages[0]:
            raise InputError(f"--depths {depths}: must be below {stages[0]}, the steps made so far at the first stage")
