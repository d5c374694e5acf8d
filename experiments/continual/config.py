"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.classification.emoji import STYLES
from experiments.common.errors import InputError
from experiments.common.options import Options
from experiments.continual.methods import METHODS

#: Of `Options`; they belong to one fine-tuning from an anchor of one's own, which there is none of here.
UNUSED = ("labels", "anchor", "anchor_epochs", "anchor_lr", "anchor_head", "anchor_weight_decay", "anchor_batch_size")


@dataclass(frozen=True)
class Config(Options):
    """`epochs` are those of each task; `lrs` are tried on the first task alone."""

    methods: tuple[str, ...] = tuple(METHODS)
    order: tuple[str, ...] = STYLES  # one task each
    epochs: int = 3
    limit: int | None = None
    dropout: float = 0.2
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

    def as_dict(self) -> dict:
        return {name: value for name, value in super().as_dict().items() if name not in UNUSED}
