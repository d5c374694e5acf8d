"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from experiments.common.scene_options import SceneOptions


@dataclass(frozen=True)
class Config(SceneOptions):
    """Scenes of emoji."""

    # Trained beforehand on scenes of other emoji in all styles, head included; or ImageNet's encoder with a new head.
    anchor: Literal["styles", "imagenet"] = "styles"
    limit: int | None = None  # use only so many emoji, for a quick try
