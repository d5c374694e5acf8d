"""Scores in percent, and the losses that go with them."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.recipes.examples import Examples
from experiments.recipes.pictures import IGNORED


def loss(logits: Tensor, targets: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """Cross-entropy, over some classes alone where they are given: a new task then leaves the others' logits alone."""
    if classes is not None:
        hidden = torch.full(logits.shape[1:2], -torch.inf, device=logits.device)
        hidden[list(classes)] = 0
        logits = logits + hidden
    return F.cross_entropy(logits, targets, ignore_index=IGNORED if targets.ndim == 3 else -100)


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
    """Accuracy, or mIoU over the classes that are in a mask or a prediction, in percent."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    overlap = None
    if metric == "mIoU":
        from torchmetrics.classification import MulticlassJaccardIndex

        overlap = MulticlassJaccardIndex(num_classes=classes, ignore_index=IGNORED, average="macro").to(device)
    for number, (images, targets) in enumerate(batches):
        if examples.corruption is not None:
            from experiments.common.corruptions import corrupt

            images = corrupt(images, *examples.corruption, seed=number)
        predicted, truth = largest(model(images.to(device)), examples.classes), targets.to(device)
        if overlap is None:
            right += int((predicted == truth).sum())
        else:
            overlap.update(predicted, truth)
    return 100 * (right / len(examples.files) if overlap is None else overlap.compute().item())
