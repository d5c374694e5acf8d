"""Scenes of emoji in one style, tested in others and under corruptions: the task and the command."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.classification.data import limit_items, split
from experiments.classification.emoji import PACKAGES, emoji_pictures
from experiments.classification.task import with_validation
from experiments.common.corruptions import CORRUPTIONS
from experiments.common.figures import montage
from experiments.common.method_study import MethodStudy
from experiments.common.progress import Progress
from experiments.segmentation.task import Config, SegmentationTask


def make_task(config: Config, cache: Path, progress: Progress) -> SegmentationTask:
    pictures = emoji_pictures(cache, progress)
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    parts = with_validation(split(pictures, config.split_seed), config.holds_out, config.split_seed)
    return SegmentationTask(parts, config)


def setting(content: dict) -> str:
    config, emoji = content["config"], content["data"]["emoji"]
    seeds = ", ".join(map(str, config["seeds"]))
    start = "an encoder with ImageNet weights"
    if config["anchor"] == "styles":
        start = f"an anchor trained on all styles with {emoji['pretrain']} other emoji"
    return (
        f"mIoU in % over 8 classes of emoji and the background, {config['test_scenes']} scenes of {emoji['test']} "
        f"emoji in each test set, mean {'± standard error ' if len(config['seeds']) > 1 else ''}over fine-tuning seeds "
        f"{seeds} (one split, one anchor). Fine-tuned on scenes of {emoji['finetune']} Twemoji, from {start}. "
        f"Corruptions of the Twemoji scenes: the mean over severities 1 to 5."
    )


#: Background, and the eight classes in their order.
PALETTE = torch.tensor(
    [
        [255, 255, 255], [240, 180, 0], [230, 120, 60], [0, 150, 110], [200, 60, 50],
        [60, 130, 200], [160, 100, 190], [90, 90, 90], [120, 200, 230],
    ],
    dtype=torch.uint8,
)  # fmt: skip


def coloured(masks: Tensor) -> Tensor:
    """[n, h, w] classes to [n, 3, h, w] uint8."""
    return PALETTE[masks].permute(0, 3, 1, 2)


def draw_montage(file: Path, task: SegmentationTask, columns: int = 8, severity: int = 3) -> None:
    """A row for each style, one for the masks, one for each corruption."""
    rows = {name: task.shown(name)[0] for name in task.style_names}
    rows["classes"] = coloured(task.shown(task.style_names[0])[1])
    rows |= {f"{kind} {severity}": task.shown(f"{kind} {severity}")[0] for kind in CORRUPTIONS}
    montage(file, torch.stack([images[:columns] for images in rows.values()]), list(rows))


COMPARISON = MethodStudy(
    make_task=make_task,
    facts=lambda task: {"emoji": {part: len(some.labels) for part, some in task.scenes.items()}},
    heading="Segmentation under a change of style and under corruptions",
    setting=setting,
    pictures=draw_montage,
    caption="Test scenes in every style, their classes, and under corruptions of severity 3",
    packages=(*PACKAGES, "torchmetrics", "scikit-image"),
)

STUDY = COMPARISON.study(
    "segmentation",
    "Fine-tune a pre-trained segmentation network on scenes of emoji in one style; test it in the other styles, and "
    "under fog, blur, noise and brightness: how much does each method keep of what the network knew?",
    Config,
    fast=Config(methods=("adamw", "ftp"), seeds=(0,), epochs=2, anchor_epochs=3, pretrain_scenes=480),
)
main = STUDY.main
