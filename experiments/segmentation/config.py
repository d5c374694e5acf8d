"""Everything that decides the result of one run."""

from dataclasses import dataclass

from experiments.common.errors import InputError
from experiments.common.options import Options, option


@dataclass(frozen=True)
class Config(Options):
    """Scenes are drawn anew for each epoch, which is no pass over the same examples but a number of new ones."""

    epochs: int = 6
    lr: float = 6e-4
    batch_size: int = 16
    anchor_epochs: int = 10
    anchor_lr: float = 5e-4
    anchor_head: float = 10.0
    anchor_batch_size: int = 16
    size: int = 96
    scenes: int = 320  # in an epoch
    pretrain_scenes: int = 960
    validation_scenes: int = 96
    test_scenes: int = 96
    limit: int | None = None

    def check(self) -> None:
        super().check()
        if self.size % 32:
            raise InputError(f"{option('size')} {self.size}: must be a multiple of 32, the stride of the encoder")
