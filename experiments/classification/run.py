"""One run of the study: load the pictures, compare the methods, report."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from experiments.classification.config import Config
from experiments.classification.data import Pictures, limit_items, split
from experiments.classification.emoji import PACKAGES, emoji_pictures
from experiments.classification.folders import folder_pictures
from experiments.classification.pictures import draw_montage
from experiments.classification.task import ClassificationTask, with_validation
from experiments.common.comparison import run_comparison
from experiments.common.errors import InputError
from experiments.common.progress import Progress
from experiments.common.record import RunRecord
from experiments.common.step_log import Board
from experiments.common.tables import show, summarise, write_report
from experiments.common.trainer import Trainer

HEADING = "Fine-tuning under a domain shift"


def load_parts(config: Config, cache: Path, progress: Progress) -> tuple[dict[str, Pictures], int]:
    """The parts of the split, and the number of the domain that is fine-tuned on."""
    if config.data_root is None:
        pictures = emoji_pictures(cache, progress)
    else:
        pictures = folder_pictures(Path(config.data_root), progress)
    names = pictures.domain_names
    if config.id_domain is not None and config.id_domain not in names:
        raise InputError(f"--id-domain {config.id_domain}: the domains are {', '.join(names)}")
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    id_domain = names.index(config.id_domain) if config.id_domain else 0
    parts = split(pictures, config.split_seed)
    shares = {"labels": config.labels, "validation": config.validation if config.holds_out else 0.0}
    return with_validation(parts, id_domain, **shares, seed=config.split_seed), id_domain


def make_task(config: Config, cache: Path, progress: Progress) -> ClassificationTask:
    parts, id_domain = load_parts(config, cache, progress)
    device = torch.device(config.device)
    return ClassificationTask(parts, id_domain, dropout=config.dropout, shift=config.shift, device=device)


def about(task: ClassificationTask) -> dict:
    """What of the pictures goes into the record."""
    test = task.pictures["test"]
    return {
        "id_domain": test.domain_names[task.id_domain],
        "domains": list(test.domain_names),
        "classes": list(test.classes),
        "items": {name: len(set(part.items)) for name, part in task.pictures.items()},
        "pictures": {name: len(part.items) for name, part in task.pictures.items()},
    }


def setting(content: dict) -> str:
    data, config = content["data"], content["config"]
    items, seeds = data["items"], config["seeds"]
    start = "an anchor trained on all domains" if config["anchor"] == "styles" else "plain ImageNet weights"
    return (
        f"Accuracy in % on {items['test']} test items, mean {'± standard error ' if len(seeds) > 1 else ''}over "
        f"fine-tuning seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} (one split, one anchor). "
        f"{items['pretrain']} items for pre-training, {items['finetune']} for fine-tuning, "
        f"{len(data['classes'])} classes. Fine-tuned on {data['id_domain']} alone, from {start}."
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
    record = RunRecord(out, "classification", config.as_dict())
    if not record.finished:
        with Progress(console) as progress, Board(out / "tensorboard" if tensorboard else None) as board:
            task = make_task(config, cache, progress)
            record.check_data(task.fingerprint())
            record.note_environment(PACKAGES)
            run_comparison(Trainer(config, task, progress, board, on_step), record, cache)
        record.content["data"] |= about(task)
        record.content |= summarise(record.content, task)
        draw_montage(out / "pictures.png", task.pictures["test"])
        caption = "Some of the test pictures, one row for each domain"
        write_report(record, HEADING, setting(record.content), caption)
        record.content["status"] = "finished"
        record.save()
    show(record, console, "Accuracy (%) after fine-tuning", setting(record.content))
