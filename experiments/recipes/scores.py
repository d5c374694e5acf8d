"""Losses, and what is counted over the batches of a test."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.corruptions import corrupt
from experiments.recipes.examples import Examples
from experiments.recipes.pictures import IGNORED

ACCURACY, MIOU = "accuracy", "mIoU"


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, of pictures or of pixels."""
    return F.cross_entropy(outputs, targets, ignore_index=IGNORED if targets.ndim == 3 else -100)


def largest(logits: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """The class with the largest logit, among some classes where they are given."""
    if classes is None:
        return logits.argmax(dim=1)
    among = torch.tensor(classes, device=logits.device)
    return among[logits[:, among].argmax(dim=1)]


@torch.no_grad()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], examples: Examples, metric: str, classes: int
) -> float:
    """The metric in percent. mIoU is over the classes that are in a mask or a prediction."""
    from torchmetrics.classification import MulticlassJaccardIndex  # slow to import

    device = next(model.parameters()).device
    model.eval()
    overlap = MulticlassJaccardIndex(num_classes=classes, ignore_index=IGNORED, average="macro").to(device)
    right = seen = 0
    for number, (images, targets) in enumerate(batches):
        if examples.corruption is not None:
            images = corrupt(images, *examples.corruption, seed=number)
        found, truth = largest(model(images.to(device)), examples.classes), targets.to(device)
        if metric == MIOU:
            overlap.update(found, truth)
        else:
            right, seen = right + int((found == truth).sum()), seen + len(truth)
    return 100 * (overlap.compute().item() if metric == MIOU else right / seen)
