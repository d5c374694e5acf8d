"""ImageNet's weights and a new head, the usual start of fine-tuning: AdamW, and FTPAdamW in its place.

EfficientNet-Lite0 learns what an emoji shows from 609 of Twemoji's, in 60 steps, and is tested on 407 others: in
Twemoji's style (ID) and in two that it never saw (OOD). Three minutes on two CPU cores, no download.

pip install '.[cpu,demo]'; python -m examples.new_head
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch.nn import functional as F

import hyperopt_ftp as hft
from experiments.classification.data import Pictures, flip_and_shift, split
from experiments.classification.emoji import emoji_pictures
from experiments.classification.model import Classifier, answers
from experiments.common.progress import Progress

HEAD = Classifier.head
OPTIMIZERS: dict[str, Callable[[Classifier, float], torch.optim.Optimizer]] = {
    "AdamW": lambda model, lr: torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=0.0),
    "FTPAdamW": lambda model, lr: hft.FTPAdamW(model.named_parameters(), lr=lr, exclude=HEAD),
}


def fine_tune(name: str, lr: float, pictures: Pictures, seed: int, steps: int = 60) -> Classifier:
    """Batches of 32, a cosine to 0."""
    torch.manual_seed(seed)
    drawn = torch.Generator().manual_seed(seed)
    model = Classifier(len(pictures.classes), pictures.images.shape[-1], dropout=0.2)
    model.train()  # BatchNorm keeps its ImageNet statistics
    opt = OPTIMIZERS[name](model, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=steps)
    for _ in range(steps):
        batch = torch.randint(len(pictures.labels), (32,), generator=drawn)
        images = flip_and_shift(pictures.images[batch], drawn, 6)
        opt.zero_grad()
        F.cross_entropy(model(images), pictures.labels[batch]).backward()
        opt.step()
        schedule.step()
    return model


def scores(model: Classifier, test: Pictures) -> tuple[float, float]:
    """Accuracy in %: in the style that was learned, and the mean of the others."""
    styles = [test.of_domain(number) for number in range(len(test.domain_names))]
    right = [answers(model, some.images, torch.device("cpu")) == some.labels for some in styles]
    own, *others = (100 * some.float().mean().item() for some in right)
    return own, fmean(others)


def main(
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3), seeds: tuple[int, ...] = (0, 1), steps: int = 60
) -> dict[tuple[str, float], tuple[float, ...]]:
    with Progress(Console()) as progress:
        parts = split(emoji_pictures(Path("runs/cache"), progress), seed=0)
    learned, found = parts["finetune"].of_domain(0), {}
    for name in OPTIMIZERS:
        for lr in lrs:
            of_seeds = [scores(fine_tune(name, lr, learned, seed, steps), parts["test"]) for seed in seeds]
            found[name, lr] = tuple(fmean(column) for column in zip(*of_seeds, strict=True))
            print(f"{name:9} lr {lr:<6g} ID {found[name, lr][0]:.1f} %, OOD {found[name, lr][1]:.1f} %", flush=True)
    return found


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    print("accuracy in the style that is learned (ID), and in two others (OOD)")
    main()
