"""`python -m experiments.segmentation`: every method at every learning rate, as in experiments.sensitivity."""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.classification.emoji import PACKAGES
from experiments.common.errors import InputError
from experiments.common.method_study import MethodStudy
from experiments.segmentation import own
from experiments.segmentation import task as segmentation
from experiments.sensitivity import study as sensitivity
from experiments.sensitivity.task import Grid

COMPARISON = MethodStudy(
    segmentation.SegmentationTask, lambda task: {"scenes": {name: part.count for name, part in task.parts.items()}}
)
OWN = replace(COMPARISON, make_task=own.OwnTask, facts=lambda task: COMPARISON.facts(task) | {"start": task.start})


@dataclass(frozen=True)
class Config(Grid):
    """Scenes of emoji."""

    usual = ("linear", "adamw", "adamw_head", "ftp", "wise", "l2sp", "tpgm")
    anchor: Literal["styles", "imagenet"] = "styles"
    lrs: tuple[float, ...] = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)  # a linear probe and FTP have ten times that
    scenes: int = segmentation.Config.scenes  # to fine-tune on
    pretrain_scenes: int = segmentation.Config.pretrain_scenes  # of the anchor's training
    test_scenes: int = segmentation.Config.test_scenes  # in each test
    # Pictures of your own, DIR in VOC's layout: `--anchor imagenet --data DIR`; what follows is for them.
    data: str | None = None
    network: str | None = None  # an encoder of segmentation_models_pytorch; none: EfficientNet-Lite0, as for scenes
    checkpoint: str | None = None  # file of its weights
    size: int | None = None  # of the pictures, in pixels; none: 224
    # Settings for the paper's PASCAL-Context. No option of its training was found in text: they are chosen here.
    paper: Literal["pascal"] | None = None

    def check_data(self) -> None:
        if self.data is None and (self.network or self.checkpoint or self.size or self.paper):
            raise InputError(
                "--network, --checkpoint, --size and --paper are for pictures of your own: give --data DIR"
            )
        super().check_data()

    def options(self, seed: int, lr: float) -> segmentation.Config:
        if self.data is not None:
            given = {name: getattr(self, name) for name in ("anchor", "labels", "data", "network", "checkpoint")}
            return own.Config(**self.shared(seed, lr, own.Config.epochs), **given, size=self.size or own.Config.size)
        names = ("anchor", "limit", "labels", "scenes", "pretrain_scenes", "test_scenes")
        given = {name: getattr(self, name) for name in names}
        epochs = 12 if self.anchor == "imagenet" else segmentation.Config.epochs  # a new decoder needs more steps
        return segmentation.Config(**self.shared(seed, lr, epochs), **given)

    def study(self) -> MethodStudy:
        return COMPARISON if self.data is None else OWN


STUDY = replace(
    sensitivity.STUDY,
    name="segmentation",
    prog="experiments.segmentation",
    config=Config,
    papers={"pascal": {"anchor": "imagenet", "epochs": 20, "methods": ("linear", "adamw", "ftp", "l2sp", "wise")}},
    fast=Config(anchor="imagenet", methods=("adamw", "ftp"), lrs=(2e-4, 2e-3), seeds=(0,), test_scenes=60),
    packages=(*PACKAGES, "segmentation_models_pytorch", "torchmetrics", "scikit-image", "scikit-learn"),
)
main = STUDY.main
