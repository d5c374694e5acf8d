"""What is compared, on which tasks, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names
from hyperopt_ftp.types import PaperOrExact

RADIUS_LR = 1e-2  # FTP's default
TASKS: Mapping[str, str] = {
    "styles": "emoji, from a network trained on them in all styles",
    "minilm": "tweets, from MiniLM as it comes",
    "imagenet": "emoji, from ImageNet's weights",
    "scenes": "segmentation of scenes, from a network trained on others in all styles",
}


@dataclass(frozen=True)
class Way:
    """Of fine-tuning: what moves the radii. Without `gradient`, `every` and `depth` there are none."""

    title: str
    gradient: PaperOrExact | None = None  # FTP's
    every: int = 0  # the closed form with the gradient of a validation batch, once in so many steps
    depth: int = 0  # a full hypergradient through so many steps, once in as many
    part: str = "train"  # whose loss moves the radii
    labels: str = "train"  # what is trained on; "finetune" are these and those of validation


WAYS: Mapping[str, Way] = {
    "adamw": Way("AdamW"),
    "adamw_all": Way("AdamW, all labels", labels="finetune"),
    "paper": Way("FTP, paper", "paper"),
    "paper_all": Way("FTP, paper, all labels", "paper", labels="finetune"),
    "exact": Way("FTP, exact", "exact"),
    "exact_all": Way("FTP, exact, all labels", "exact", labels="finetune"),
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
        given = f"--depths {' '.join(map(str, self.depths))} --stages {' '.join(map(str, self.stages))}"
        if "paper" not in self.ways:
            raise InputError(f"--ways {' '.join(self.ways)}: give paper too, which all are compared with")
        if any([*some] != sorted(some) for some in (self.depths, self.stages)) or self.depths[0] != 1:
            raise InputError(f"{given}: give depths that rise from 1, and stages that rise")
        if self.depths[-1] >= self.stages[0] or self.stages[-1] > self.steps:
            raise InputError(f"{given}: depths must be below {self.stages[0]}, the steps made at the first stage, "
                             f"and stages at most --steps {self.steps}")  # fmt: skip
        if self.steps < (least := 2 * max(WAYS[way].depth for way in self.ways)):
            raise InputError(f"--steps {self.steps}: at least {least}; the first move of the radii serves later steps")
