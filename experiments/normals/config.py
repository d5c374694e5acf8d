"""Everything that decides the result of one run."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Fixed

from experiments.common.scene_options import SceneOptions


@dataclass(frozen=True)
class Config(SceneOptions):
    """Scenes of solids."""

    # Trained beforehand on scenes of all textures and lights, head included; or ImageNet's encoder with a new head.
    anchor: Literal["styles", "imagenet"] = "styles"
    labels: Fixed[float] = 1.0  # scenes are drawn, so there is no share of them to use
    validation: Fixed[float] = 0.2  # nor to hold out; validation_scenes is the number
