"""`python -m experiments.segmentation`: every method at every learning rate, as in experiments.sensitivity."""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.classification.emoji import PACKAGES
from experiments.common.method_study import MethodStudy
from experiments.segmentation import task as segmentation
from experiments.sensitivity import study as sensitivity
from experiments.sensitivity.task import Grid

COMPARISON = MethodStudy(
    segmentation.SegmentationTask, lambda task: {"scenes": {name: part.count for name, part in task.parts.items()}}
)


@dataclass(frozen=True)
class Config(Grid):
    """Scenes of emoji."""

    usual = ("linear", "adamw", "adamw_head", "ftp", "wise", "l2sp", "tpgm")
    anchor: Literal["styles", "imagenet"] = "styles"
    lrs: tuple[float, ...] = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)  # a linear probe and FTP have ten times that
    scenes: int = segmentation.Config.scenes  # to fine-tune on
    pretrain_scenes: int = segmentation.Config.pretrain_scenes  # of the anchor's training
    test_scenes: int = segmentation.Config.test_scenes  # in each test

    def options(self, seed: int, lr: float) -> segmentation.Config:
        names = ("anchor", "limit", "labels", "scenes", "pretrain_scenes", "test_scenes")
        own = {name: getattr(self, name) for name in names}
        return segmentation.Config(**self.shared(seed, lr, segmentation.Config.epochs), **own)

    def study(self) -> MethodStudy:
        return COMPARISON


STUDY = replace(
    sensitivity.STUDY,
    name="segmentation",
    prog="experiments.segmentation",
    config=Config,
    fast=Config(anchor="imagenet", methods=("adamw", "ftp"), lrs=(2e-4, 2e-3), seeds=(0,), test_scenes=60),
    packages=(*PACKAGES, "segmentation_models_pytorch", "torchmetrics", "scikit-image", "scikit-learn"),
)
main = STUDY.main
