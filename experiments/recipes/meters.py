"""What is counted over the batches of a test, by the name of the metric."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from experiments.recipes.angles import WITHIN, angles, present
from experiments.recipes.pictures import IGNORED

ACCURACY, MIOU, NORMALS = "accuracy", "mIoU", f"pixels within {WITHIN[0]:g} degrees"
MEAN_ERROR = "mean error in degrees"


def largest(logits: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """The class with the largest logit, among some classes where they are given."""
    if classes is None:
        return logits.argmax(dim=1)
    among = torch.tensor(classes, device=logits.device)
    return among[logits[:, among].argmax(dim=1)]


class Meter(Protocol):
    def update(self, outputs: Tensor, truth: Tensor, classes: tuple[int, ...] | None) -> None: ...

    def compute(self) -> dict[str, float]:
        """The metric in percent by its name, and what is measured besides."""
        ...


class Accuracy:
    def __init__(self) -> None:
        self.right = self.seen = 0

    def update(self, outputs: Tensor, truth: Tensor, classes: tuple[int, ...] | None) -> None:
        self.right += int((largest(outputs, classes) == truth).sum())
        self.seen += len(truth)

    def compute(self) -> dict[str, float]:
        return {ACCURACY: 100 * self.right / self.seen}


class Overlap:
    """mIoU over the classes that are in a mask or a prediction."""

    def __init__(self, classes: int, device: torch.device) -> None:
        from torchmetrics.classification import MulticlassJaccardIndex  # slow to import

        self.index = MulticlassJaccardIndex(num_classes=classes, ignore_index=IGNORED, average="macro").to(device)

    def update(self, outputs: Tensor, truth: Tensor, classes: tuple[int, ...] | None) -> None:
        self.index.update(largest(outputs, classes), truth)

    def compute(self) -> dict[str, float]:
        return {MIOU: 100 * self.index.compute().item()}


class Angles:
    """Over the pixels of all pictures that have a normal."""

    def __init__(self) -> None:
        self.within = self.pixels = 0
        self.degrees = 0.0

    def update(self, outputs: Tensor, truth: Tensor, classes: tuple[int, ...] | None) -> None:
        if outputs.device.type == "mps":  # it has no float64
            outputs, truth = outputs.cpu(), truth.cpu()
        errors = angles(outputs, truth)[present(truth)]
        self.within += int((errors < WITHIN[0]).sum())
        self.pixels += len(errors)
        self.degrees += errors.sum().item()

    def compute(self) -> dict[str, float]:
        return {NORMALS: 100 * self.within / self.pixels, MEAN_ERROR: self.degrees / self.pixels}


METERS: Mapping[str, Callable[[int, torch.device], Meter]] = {
    ACCURACY: lambda classes, device: Accuracy(),
    MIOU: Overlap,
    NORMALS: lambda classes, device: Angles(),
}
