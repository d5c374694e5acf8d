"""One run of the study: draw the emoji, compare the methods on scenes of them, report."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from experiments.classification.data import limit_items, split
from experiments.classification.emoji import PACKAGES, emoji_pictures
from experiments.classification.task import with_validation
from experiments.common.comparison import run_comparison
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.step_log import Board
from experiments.common.tables import show, summarise, write_report
from experiments.common.trainer import Trainer
from experiments.segmentation.config import Config
from experiments.segmentation.pictures import draw_montage
from experiments.segmentation.task import SegmentationTask

HEADING = "Segmentation under a change of style and under corruptions"
ID_DOMAIN = 0  # Twemoji


def make_task(config: Config, cache: Path, progress: Progress) -> SegmentationTask:
    pictures = emoji_pictures(cache, progress)
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    parts = split(pictures, config.split_seed)
    shares = {"labels": config.labels, "validation": config.validation if config.holds_out else 0.0}
    return SegmentationTask(
        with_validation(parts, ID_DOMAIN, **shares, seed=config.split_seed),
        ID_DOMAIN,
        size=config.size,
        train_scenes=config.scenes,
        test_scenes=config.test_scenes,
        validation_scenes=config.validation_scenes,
        pretrain_scenes=config.pretrain_scenes,
        device=torch.device(config.device),
        seed=config.split_seed,
    )


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


def run(
    config: Config,
    out: Path,
    cache: Path,
    console: Console,
    tensorboard: bool = False,
    on_step: Callable[[str, int], None] | None = None,
) -> None:
    """Do what is left of a run, then show its table. `on_step` lets a test interrupt at a given step."""
    record = RunRecord(out, "segmentation", config.as_dict())
    if not record.finished:
        with Progress(console) as progress, Board(out / "tensorboard" if tensorboard else None) as board:
            task = make_task(config, cache, progress)
            record.check_data(task.fingerprint())
            record.note_environment((*PACKAGES, "torchmetrics", "scikit-image"))
            run_comparison(Trainer(config, task, progress, board, on_step), record, cache)
        record.content["data"]["emoji"] = {part: len(some.labels) for part, some in task.scenes.items()}
        record.content |= summarise(record.content, task)
        draw_montage(out / "pictures.png", task)
        caption = "Test scenes in every style, their classes, and under corruptions of severity 3"
        write_report(record, HEADING, setting(record.content), caption)
        record.content["status"] = "finished"
        record.save()
    show(record, console, "mIoU (%) after fine-tuning", setting(record.content))
