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
    """Of fine-tuning: what moves the radii. `gradient` is FTP's; without any of the three there are no radii."""

    title: str
    gradient: PaperOrExact | None = None
    every: int = 0  # the closed form with the gradient of a validation batch, once in so many steps
    depth: int = 0  # a full hypergradient through so many steps, once in as many
    validates: bool = False
    all_labels: bool = False  # those of the validation examples, too

    @property
    def slow(self) -> bool:
        """Much slower than FTP, so that equal time says something."""
        return bool(self.depth) or 0 < self.every <= 4


WAYS: Mapping[str, Way] = {
    "adamw": Way("AdamW"),
    "adamw_all": Way("AdamW, all labels", all_labels=True),
    "paper": Way("FTP, paper", "paper"),
    "paper_all": Way("FTP, paper, all labels", "paper", all_labels=True),
    "exact": Way("FTP, exact", "exact"),
    "exact_all": Way("FTP, exact, all labels", "exact", all_labels=True),
    **{
        f"every{n}": Way(f"one step, validation, every {n}" if n > 1 else "one step, validation", every=n,
                         validates=True)
        for n in (1, 2, 4, 8, 16)
    },
    "train4": Way("full, K = 4, training", depth=4),
    "validation4": Way("full, K = 4, validation", depth=4, validates=True),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Short trainings at one learning rate, without weight decay and dropout."""

    tasks: tuple[str, ...] = tuple(TASKS)
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)  # steps K that are differentiated through; the last is the measure
    stages: tuple[int, ...] = (17, 24, 32)  # steps after which gradients are compared
    ways: tuple[str, ...] = tuple(WAYS)  # of fine-tuning
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # each a split of its own, with its anchor, order and augmentation
    compared_seeds: int = 3  # gradients are compared on so many, the first ones
    steps: int = 32  # of a fine-tuning
    batch_size: int = 8
    lr: float = 6e-4  # first learning rate; it falls to 0 as a cosine
    anchor_epochs: int = 3  # passes of a network that is trained beforehand
    items: int = 800  # emoji, at most
    tweets: int = 60  # of each topic and sentiment in the tests, and twice as many to fine-tune on

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        check_fields(self)
        check_names("tasks", self.tasks, TASKS)
        check_names("ways", self.ways, WAYS)
        if "paper" not in self.ways:
            raise InputError(f"--ways {' '.join(self.ways)}: give paper too, which all are compared with")
        for name in ("depths", "stages"):
            given = getattr(self, name)
            if list(given) != sorted(given):
                raise InputError(f"--{name} {' '.join(map(str, given))}: give them in rising order")
        if self.depths[0] != 1 or self.depths[-1] >= self.stages[0]:
            raise InputError(
                f"--depths {' '.join(map(str, self.depths))}: must begin with 1, the one step of FTP, and end below "
                f"{self.stages[0]}, the steps made so far at the first of --stages"
            )
        if self.stages[-1] > self.steps:
            raise InputError(f"--stages {' '.join(map(str, self.stages))}: must be at most {self.steps}, the --steps")
        if self.steps < (least := 2 * max(WAYS[way].depth for way in self.ways)):
            raise InputError(f"--steps {self.steps}: at least {least}; the first move of the radii serves later steps")
