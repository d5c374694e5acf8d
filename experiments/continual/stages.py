"""The tasks of the sequence: the same emoji, each time in another style."""

from pathlib import Path

import torch

from experiments.classification.data import limit_items, split
from experiments.classification.emoji import emoji_pictures
from experiments.classification.task import ClassificationTask, with_validation
from experiments.common.progress import Progress
from experiments.continual.config import Config


def make_stages(config: Config, cache: Path, progress: Progress) -> list[ClassificationTask]:
    """In the order in which they are learnt. Each is tested in every style.

    The first one also has the parts `train` and `validation` where learning rates are to be chosen.
    """
    pictures = emoji_pictures(cache, progress)
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    parts = split(pictures, config.split_seed)
    del parts["pretrain"]  # nothing is trained beforehand
    stages = []
    for number, style in enumerate(config.order):
        domain = pictures.domain_names.index(style)
        share = config.validation if config.holds_out and number == 0 else 0.0
        own = with_validation(parts, domain, labels=1.0, validation=share, seed=config.split_seed)
        device = torch.device(config.device)
        stages.append(ClassificationTask(own, domain, dropout=config.dropout, shift=config.shift, device=device))
    return stages


def style_of(stage: ClassificationTask) -> str:
    return stage.pictures["test"].domain_names[stage.id_domain]
