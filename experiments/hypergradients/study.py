"""Emoji in one style, tested in others: the tasks and the command."""

from pathlib import Path

import torch

from experiments.classification.emoji import PACKAGES
from experiments.classification.study import about, load_parts
from experiments.classification.task import DROPOUT, ClassificationTask
from experiments.common.progress import Progress
from experiments.hypergradients.comparing import Tasks, gradient_study
from experiments.hypergradients.config import Config
from experiments.hypergradients.report import Subject


def make_tasks(config: Config, cache: Path, progress: Progress) -> Tasks:
    parts, device = load_parts(config, cache, progress), torch.device(config.device)
    return Tasks(*(ClassificationTask(parts, device=device, dropout=rate) for rate in (DROPOUT, 0.0)))


SUBJECT = Subject(
    network="EfficientNet-Lite0",
    examples=lambda data: (f"{data['items']['train']} Twemoji", f"{data['items']['validation']} emoji"),
    anchors={"styles": "an anchor trained on all styles", "imagenet": "ImageNet's weights with a new head"},
)

STUDY = gradient_study(
    "hypergradients", "experiments.hypergradients", "a real fine-tuning", Config, make_tasks, about, PACKAGES, SUBJECT
)
main = STUDY.main
