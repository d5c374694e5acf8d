"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from experiments.common.errors import InputError
from experiments.common.options import AnchorOptions, option


@dataclass(frozen=True)
class Config(AnchorOptions):
    """Scenes of emoji, drawn anew for each epoch: it is no pass over the same examples but a number of new ones."""

    # Trained beforehand on scenes of other emoji in all styles, head included; or ImageNet's encoder with a new head.
    anchor: Literal["styles", "imagenet"] = "styles"
    limit: int | None = None  # use only so many emoji, for a quick try
    epochs: int = 6  # passes, each over new scenes
    lr: float = 6e-4  # first learning rate; it falls to 0 as a cosine
    batch_size: int = 16  # scenes in one step
    anchor_lr: float = 5e-4  # first learning rate of the anchor
    anchor_head: float = 10.0  # the head is new: its learning rate is so many times anchor_lr
    anchor_batch_size: int = 16  # of the anchor's training
    size: int = 96  # height and width of a scene, in pixels
    scenes: int = 320  # in an epoch of fine-tuning
    pretrain_scenes: int = 960  # in an epoch of the anchor's training
    validation_scenes: int = 96  # held out in distribution, for learning rates
    test_scenes: int = 96  # in each test set

    def check(self) -> None:
        super().check()
        if self.size % 32:
            raise InputError(f"{option('size')} {self.size}: must be a multiple of 32, the stride of the encoder")
