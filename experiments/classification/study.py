"""Pictures in one style, tested in others: the parts, the task, and the command."""

from pathlib import Path

import torch

from experiments.classification.cells import cell_pictures, corrupted
from experiments.classification.data import Pictures, limit_items, split
from experiments.classification.drawn import drawn_pictures
from experiments.classification.emoji import PACKAGES, emoji_pictures, fluent_pictures
from experiments.classification.own import OwnTask, own_pictures
from experiments.classification.paper import PAPERS, SOURCES
from experiments.classification.task import ClassificationTask, Config, with_validation
from experiments.common.figures import montage
from experiments.common.method_study import MethodStudy
from experiments.common.progress import Progress


def load_parts(config: Config, cache: Path, progress: Progress) -> dict[str, Pictures]:
    """The parts of the split."""
    others = {"cells": cell_pictures, "drawn": drawn_pictures}
    return parts_of(config, others[config.pictures]() if config.pictures in others else emoji_pictures(cache, progress))


def parts_of(config: Config, pictures: Pictures) -> dict[str, Pictures]:
    if config.limit is not None:
        pictures = limit_items(pictures, config.limit, config.split_seed)
    if config.domain is not None:
        pictures = pictures.led_by(config.domain)
    parts, seed = split(pictures, config.split_seed, config.shares), config.split_seed
    return with_validation(parts, config.holds_out, seed, config.labels)


def make_task(config: Config, cache: Path, progress: Progress) -> ClassificationTask:
    if config.data is not None:
        pictures, folder = own_pictures(config, progress)
        return OwnTask(parts_of(config, pictures), folder, config)
    parts, device = load_parts(config, cache, progress), torch.device(config.device)
    own, more = parts["test"].of_domain(0), {}
    if config.pictures == "cells":
        more = {f"{own.domain_names[0]}, corrupted": corrupted(own)}
    if config.fluent is not None:
        more = {"Fluent": fluent_pictures(Path(config.fluent), own)}
    return ClassificationTask(parts, more, device=device, by_class=config.pictures == "cells")


def about(task: ClassificationTask) -> dict:
    """What of the pictures goes into the record."""
    test = task.pictures["test"]
    return {
        "id_domain": test.domain_names[0],
        "domains": list(test.domain_names),
        "classes": list(test.classes),
        "items": {name: len(set(part.items)) for name, part in task.pictures.items()},
        "pictures": {name: len(part.items) for name, part in task.pictures.items()},
        **task.facts,
    }


def setting(content: dict) -> str:
    data, config = content["data"], content["config"]
    items, seeds = data["items"], config["seeds"]
    start = "an anchor trained on all domains" if config["anchor"] == "styles" else "plain ImageNet weights"
    if config.get("data") is not None:
        known = f"the weights of {data['network']} ({data['weights']})"
        start = f"{start}, from {known}" if config["anchor"] == "styles" else f"{known} with a new head"
    paper = SOURCES.get(config.get("paper") or "")
    metric = "Balanced accuracy (the mean over the classes)" if config.get("pictures") == "cells" else "Accuracy"
    return (
        f"{metric} in % on {items['test']} test items, mean {'± standard error ' if len(seeds) > 1 else ''}over "
        f"fine-tuning seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} (one split, one anchor). "
        f"{items['pretrain']} items for pre-training, {items['finetune']} for fine-tuning, "
        f"{len(data['classes'])} classes. Fine-tuned on {data['id_domain']} alone, from {start}."
        + (f" Settings of the paper from {paper}." if paper else "")
    )


def draw_montage(file: Path, task: ClassificationTask, columns: int = 12) -> None:
    """Random items that are drawn in every domain, or the first ones of each domain where items are not shared."""
    test = task.pictures["test"]
    places = [
        {test.items[i]: i for i in (test.domains == number).nonzero().flatten().tolist()}
        for number in range(len(test.domain_names))
    ]
    shared = [item for item in places[0] if all(item in place for place in places)]
    if shared:
        order = torch.randperm(len(shared), generator=torch.Generator().manual_seed(0))[:columns].tolist()
        chosen = [[place[shared[i]] for i in order] for place in places]
    else:
        width = min(columns, *map(len, places))
        chosen = [list(place.values())[:width] for place in places]
    montage(file, task.pixels(test.images[torch.tensor(chosen)]), list(test.domain_names))


COMPARISON = MethodStudy(
    make_task=make_task,
    facts=about,
    heading="Fine-tuning under a domain shift",
    setting=setting,
    pictures=draw_montage,
    caption="Some of the test pictures, one row for each domain",
    packages=(*PACKAGES, "timm", "torchvision"),
)

STUDY = COMPARISON.study(
    "classification",
    "Fine-tune a pre-trained network on one style of pictures and test it in others: how much does each method keep of "
    "what the network knew? Without options: emoji in three styles, AdamW against FTPAdamW and a linear probe, at one "
    "learning rate.",
    Config,
    fast=Config(methods=("adamw", "ftp"), seeds=(0,), epochs=5),
    papers=PAPERS,
)
main = STUDY.main
