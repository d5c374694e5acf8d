"""Losses, and the scores that go with them."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.recipes.angles import cosine_loss
from experiments.recipes.examples import Examples
from experiments.recipes.meters import METERS
from experiments.recipes.pictures import IGNORED


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


@torch.no_grad()
def score(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], examples: Examples, metric: str, classes: int
) -> dict[str, float]:
    """The metric in percent by its name, and what is measured besides."""
    device = next(model.parameters()).device
    model.eval()
    meter = METERS[metric](classes, device)
    for number, (images, targets) in enumerate(batches):
        if examples.corruption is not None:
            from experiments.common.corruptions import corrupt

            images = corrupt(images, *examples.corruption, seed=number)
        meter.update(model(images.to(device)), targets.to(device), examples.classes)
    return meter.compute()
