"""Options of the study, and what all its trainings have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names

Name = Literal["newspapers", "tweets", "poly", "wrong tweets", "wrong emoji"]

ABOUT: Mapping[Name, str] = {
    "newspapers": "sentences of newspapers, from opinions about films and products and in tweets (MiniLM)",
    "tweets": "tweets, from opinions about films and products and in newspapers (MiniLM)",
    "poly": "polycrystalline solar cells, from monocrystalline ones (EfficientNet-Lite0)",
    "wrong tweets": "opinions in tweets, labelled by ten annotators, 0 to 63 % of whose labels are wrong (MiniLM)",
    "wrong emoji": "emoji of which 40 % are labelled wrong (EfficientNet-Lite0)",
}
TEXTS = ("newspapers", "tweets", "wrong tweets")
WRONG = ("wrong tweets", "wrong emoji")
METHODS = (
    "source", "labels", "add", "add_tenth", "then_labels", "tenth_then", "optuna", "then_ftp",
    "tenth_then_ftp", "then_wise", "then_learned_wise", "importance", "agreement", "small_loss", "pruned", "told",
    "learned", "learned_then", "learned_then_ftp",
)  # fmt: skip
NOISE = 0.4  # share of wrong labels: another class, by chance
ANNOTATORS = tuple(0.07 * k for k in range(10))  # the same of each annotator; the last one nearly guesses
LR = 2e-4  # of AdamW, its best one for all studies of learning rates; it falls to 0 as a cosine
BATCH = 20  # examples in a step
HELD_OUT = 3  # one of so many labels is held out where something is chosen by them


@dataclass(frozen=True)
class Config:
    """What is learned, by whom, from how many labels."""

    tasks: tuple[Name, ...] = ("newspapers", "tweets", "poly", "wrong tweets", "wrong emoji")
    methods: tuple[str, ...] = METHODS
    labels: int = 100  # of the domain that counts; of texts each class alike, of pictures as they come
    counts: tuple[int, ...] = ()  # also with so many
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the split, the wrong labels and the order
    steps: int = 200  # of a training
    trials: int = 4  # trainings by which Optuna chooses
    per_class: int = 300  # texts of each class and source
    limit: int | None = None  # use only so many emoji or cells
    # That has the texts: pip download --no-deps --no-binary :all: vaderSentiment
    archive: str = "vaderSentiment-3.3.2.tar.gz"

    def check(self) -> None:
        """Refuse what cannot run, before any work starts."""
        check_fields(self)
        check_names("tasks", self.tasks, ABOUT)
        check_names("methods", self.methods, METHODS)
        if "add" not in self.methods:
            raise InputError(f"--methods {' '.join(self.methods)}: give add too, which all are compared with")
        if min(self.all_labels) < 2 * HELD_OUT or self.steps < 10:
            raise InputError(
                f"--labels {self.labels} --counts {self.counts} --steps {self.steps}: at least {2 * HELD_OUT} labels, "
                "and 10 steps"
            )
        if len(set(self.all_labels)) < len(self.all_labels):
            raise InputError(f"--labels {self.labels} --counts {self.counts}: all different")

    @property
    def all_labels(self) -> tuple[int, ...]:
        return (self.labels, *self.counts)
