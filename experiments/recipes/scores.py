"""Losses, and what is counted over the batches of a test."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.corruptions import corrupt
from experiments.recipes.examples import Examples
from experiments.recipes.pictures import IGNORED

WITHIN = 11.25  # degrees
ACCURACY, MIOU, NORMALS = "accuracy", "mIoU", f"pixels within {WITHIN:g} degrees"
MEAN_ERROR = "mean error in degrees"


def loss(outputs: Tensor, targets: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """Of normals one minus the cosine; else cross-entropy, over some classes alone where they are given: a new task
    then leaves the others' logits alone."""
    if targets.ndim == 4:
        return cosine_loss(outputs, targets)
    if classes is not None:
        hidden = torch.full(outputs.shape[1:2], -torch.inf, device=outputs.device)
        hidden[list(classes)] = 0
        outputs = outputs + hidden
    return F.cross_entropy(outputs, targets, ignore_index=IGNORED if targets.ndim == 3 else -100)


def present(normals: Tensor) -> Tensor:
    """Where there is a normal at all, [n, h, w]: elsewhere it is zero."""
    return (normals != 0).any(dim=1)


def cosine_loss(outputs: Tensor, normals: Tensor) -> Tensor:
    """One minus the cosine of the angle, as is usual: the mean over the pixels that have a normal, 0 if none has."""
    there = present(normals)
    total = torch.where(there, F.cosine_similarity(outputs, normals, dim=1), 0).sum()
    count = there.sum()
    return (count > 0).to(total.dtype) - total / count.clamp(min=1)


def angles(outputs: Tensor, normals: Tensor) -> Tensor:
    """Of outputs of any length against unit normals, both [n, 3, h, w]: degrees [n, h, w]. An output without a
    direction (zero, not finite) is as wrong as can be: 180."""
    # By the two-argument arctangent: the arccosine is flat near 0, where the best predictions are.
    directions, normals = F.normalize(outputs.double(), dim=1), normals.double()
    sine = torch.linalg.cross(directions, normals, dim=1).norm(dim=1)
    found = torch.rad2deg(torch.atan2(sine, (directions * normals).sum(1)))
    return torch.where(directions.norm(dim=1) > 0.5, found, 180.0)


def largest(logits: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    """The class with the largest logit, among some classes where they are given."""
    if classes is None:
        return logits.argmax(dim=1)
    among = torch.tensor(classes, device=logits.device)
    return among[logits[:, among].argmax(dim=1)]


@torch.no_grad()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], examples: Examples, metric: str, classes: int
) -> dict[str, float]:
    """The metric in percent by its name, and what is measured besides. mIoU is over the classes that are in a mask or a
    prediction, angles over the pixels of all pictures that have a normal."""
    from torchmetrics.classification import MulticlassJaccardIndex  # slow to import

    device = next(model.parameters()).device
    model.eval()
    overlap = MulticlassJaccardIndex(num_classes=classes, ignore_index=IGNORED, average="macro").to(device)
    right = seen = 0
    degrees = 0.0
    for number, (images, targets) in enumerate(batches):
        if examples.corruption is not None:
            images = corrupt(images, *examples.corruption, seed=number)
        outputs, truth = model(images.to(device)), targets.to(device)
        if metric == MIOU:
            overlap.update(largest(outputs, examples.classes), truth)
            continue
        if metric == NORMALS:
            errors = angles(outputs.cpu(), truth.cpu())[present(truth).cpu()]  # mps has no float64
            hits, degrees = errors < WITHIN, degrees + errors.sum().item()
        else:
            hits = largest(outputs, examples.classes) == truth
        right, seen = right + int(hits.sum()), seen + len(hits)
    if metric == MIOU:
        return {MIOU: 100 * overlap.compute().item()}
    return {metric: 100 * right / seen} | ({MEAN_ERROR: degrees / seen} if metric == NORMALS else {})
