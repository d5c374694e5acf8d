"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import check_fields, check_names, option
from experiments.meta.distillation.data import NAMES

OWN, OTHER = "mlp", "convolutional"  # networks: that pictures are distilled with, and one that is tested too
INITS = 2  # new networks in each round
OUTER_BATCH = 512  # training pictures that a round's networks are judged by
PICTURE_LR = 0.05  # of outer Adam, on the logits of the pixels
LR = 0.03  # of training, that distillation starts from
RATE_LR = 0.02  # of outer Adam, on the logarithm of the learning rate
TRACK = 25  # rounds from one look at validation pictures to the next
WHOLE_BATCH = 64  # pictures in a step of training on all of them
CHOICE_INITS = 2  # networks that validation accuracy is the mean of
TEST_INITS = 5  # others, that test accuracy is the mean of


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = NAMES  # digits: 8 x 8 pixels; emoji: 16 x 16 in colour
    per_class: tuple[int, ...] = (1, 10)  # pictures a class
    seeds: tuple[int, ...] = (0, 1, 2)  # each a split, a choice of pictures, and initial weights of its own
    steps: int = 20  # K, of training on the pictures, that are differentiated through
    rounds: int = 150  # outer steps of distillation
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)  # of training, to choose from
    few_steps: tuple[int, ...] = (20, 60, 200)  # of training on a few pictures, to choose from
    whole_steps: tuple[int, ...] = (20, 60, 200, 400)  # of training on all pictures, to choose from

    def check(self) -> None:
        check_names("data", self.data, NAMES)
        check_fields(self)
        if max(self.per_class) > 20:
            raise InputError(f"--per-class {' '.join(map(str, self.per_class))}: give at most 20")
        for name in ("few_steps", "whole_steps"):
            values = getattr(self, name)
            if list(values) != sorted(values):
                raise InputError(f"{option(name)} {' '.join(map(str, values))}: give numbers in rising order")
