"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Fixed

from experiments.classification.emoji import STYLES
from experiments.common.errors import InputError
from experiments.common.options import Options
from experiments.continual.methods import METHODS


@dataclass(frozen=True)
class Config(Options):
    """`epochs` are those of each task; `lrs` are tried on the first task alone."""

    methods: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="method", help="; ".join(f"{name}: {method.about}" for name, method in METHODS.items())),
    ] = tuple(METHODS)
    wider: Fixed[tuple[tuple[str, float], ...]] = ()
    order: tuple[str, ...] = STYLES  # the styles as they are learnt, each once
    epochs: int = 3  # passes over the examples of each task
    limit: int | None = None  # use only so many emoji, for a quick try
    dropout: float = 0.2  # before the head
    shift: int = 6  # pixels, augmentation

    def check(self) -> None:
        super().check()
        if sorted(self.order) != sorted(STYLES):
            raise InputError(f"--order {' '.join(map(repr, self.order))}: give each of {', '.join(STYLES)} once")

    def check_methods(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= METHODS.keys():
            raise InputError(f"--method {' '.join(self.methods)}: give any of {', '.join(METHODS)}, each once")

    @property
    def holds_out(self) -> bool:
        return bool(self.lrs)
