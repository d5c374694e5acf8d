"""`python -m experiments.segmentation`: every method at every learning rate, as in experiments.sensitivity."""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.classification.emoji import PACKAGES
from experiments.common.method_study import MethodStudy
from experiments.segmentation.task import Config as Options
from experiments.segmentation.task import SegmentationTask
from experiments.sensitivity import study as sensitivity
from experiments.sensitivity.task import Grid

USUAL = ("linear", "adamw", "adamw_head", "ftp", "wise", "l2sp", "tpgm")
COMPARISON = MethodStudy(
    make_task=SegmentationTask,
    facts=lambda task: {"start": task.start, "scenes": {part: len(some.groups) for part, some in task.scenes.items()}},
    heading="Segmentation under a change of style and under corruptions",
    setting=lambda content: content["data"]["start"],
)


@dataclass(frozen=True)
class Config(Grid):
    """Scenes of emoji, as they are in experiments.segmentation.task."""

    anchor: Literal["styles", "imagenet"] = "styles"
    # Up to one at which AdamW forgets. A linear probe and FTP have ten times that.
    lrs: tuple[float, ...] = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)
    scenes: int = Options.scenes  # to fine-tune on
    pretrain_scenes: int = Options.pretrain_scenes  # of the anchor's training
    test_scenes: int = Options.test_scenes  # in each test
    # Pictures of your own, DIR in VOC's layout: `--anchor imagenet --data DIR`; what follows is for them.
    data: str | None = None
    network: str | None = None  # an encoder of segmentation_models_pytorch; none: EfficientNet-Lite0, as for scenes
    checkpoint: str | None = None  # file of its weights
    size: int | None = None  # of the pictures, in pixels; none: 64 for scenes, 224 for one's own
    # Settings for the paper's PASCAL-Context. No option of its training was found in text: they are chosen here.
    paper: Literal["pascal"] | None = None

    @property
    def all_methods(self) -> tuple[str, ...]:
        return self.methods or USUAL

    def options(self, seed: int, lr: float) -> Options:
        names = ("anchor", "limit", "labels", "scenes", "pretrain_scenes", "test_scenes")
        names = (*names, "data", "network", "checkpoint")
        size = self.size or (Options.size if self.data is None else 224)
        return Options(
            size=size, **self.shared(seed, lr, Options.epochs), **{name: getattr(self, name) for name in names}
        )

    def study(self) -> MethodStudy:
        return COMPARISON


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
