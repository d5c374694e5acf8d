"""Emoji in one style, tested in others: the tasks and the command."""

from pathlib import Path

import torch

from experiments.classification.emoji import PACKAGES
from experiments.classification.study import about, load_parts
from experiments.classification.task import ClassificationTask
from experiments.common.cli import Command
from experiments.common.progress import Progress
from experiments.hypergradients.comparing import GradientStudy
from experiments.hypergradients.config import Config
from experiments.hypergradients.report import Subject, write_report


def make_tasks(config: Config, cache: Path, progress: Progress) -> tuple[ClassificationTask, ClassificationTask]:
    parts, id_domain = load_parts(config, cache, progress)
    device = torch.device(config.device)
    with_dropout, without = (
        ClassificationTask(parts, id_domain, dropout=dropout, shift=config.shift, device=device)
        for dropout in (config.dropout, 0.0)
    )
    return with_dropout, without


SUBJECT = Subject(
    network="EfficientNet-Lite0",
    examples=lambda data: (f"{data['items']['train']} Twemoji", f"{data['items']['validation']} emoji"),
    anchors={"styles": "an anchor trained on all styles", "imagenet": "ImageNet's weights with a new head"},
)

COMPARED = GradientStudy(make_tasks, about, PACKAGES, lambda record: write_report(record, SUBJECT))

STUDY = Command(
    "experiments.hypergradients",
    "Compare FTP's one-step radius gradients with full ones through K steps, on the way of a real fine-tuning; then "
    "fine-tune with each of them. Stop it at any time; the same command goes on from there.",
    Config,
    COMPARED.run,
    COMPARED.report,
)

main = STUDY.main
