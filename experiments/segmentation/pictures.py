"""A look at the test scenes: every style, their classes, corruptions."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.common.corruptions import CORRUPTIONS
from experiments.common.figures import montage
from experiments.segmentation.task import SegmentationTask

#: Background, and the eight classes in their order.
PALETTE = torch.tensor(
    [
        [255, 255, 255], [240, 180, 0], [230, 120, 60], [0, 150, 110], [200, 60, 50],
        [60, 130, 200], [160, 100, 190], [90, 90, 90], [120, 200, 230],
    ],
    dtype=torch.uint8,
)  # fmt: skip


def coloured(masks: Tensor) -> Tensor:
    """[n, h, w] classes to [n, 3, h, w] uint8."""
    return PALETTE[masks].permute(0, 3, 1, 2)


def draw_montage(file: Path, task: SegmentationTask, columns: int = 8, severity: int = 3) -> None:
    """A row for each style, one for the masks, one for each corruption."""
    rows = {name: task.shown(name)[0] for name in task.style_names}
    rows["classes"] = coloured(task.shown(task.style_names[task.id_domain])[1])
    rows |= {f"{kind} {severity}": task.shown(f"{kind} {severity}")[0] for kind in CORRUPTIONS}
    montage(file, torch.stack([images[:columns] for images in rows.values()]), list(rows))
