"""Photographs of solar cells by the light they give off: working or defective, mono- or polycrystalline.

The 2,624 pictures of ELPV (Deitsch et al., https://doi.org/10.1016/j.solener.2019.02.067) lie in the package
elpv-dataset (CC BY-NC-SA 4.0), whose files alone are read. Nothing of them is kept in this repository.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.classification.data import Pictures
from experiments.common.corruptions import CORRUPTIONS, corrupt
from experiments.common.errors import folder_of

SIZE = 96
CLASSES = ("working", "defective")
KINDS = ("mono", "poly")
SEVERITY = 3


def cell_pictures() -> Pictures:
    """Those of which the experts were sure, 2,223, in grey; each is an item of its own, in one domain."""
    folder = folder_of("elpv_dataset", "cells") / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    sure = [(path, int(float(share)), kind) for path, share, kind in rows if float(share) in (0, 1)]
    pictures = [np.asarray(Image.open(folder / path).convert("L").resize((SIZE, SIZE), 3)) for path, *_ in sure]
    grey = torch.from_numpy(np.stack(pictures))
    items = tuple(Path(path).stem for path, *_ in sure)
    return Pictures(
        images=grey[:, None].expand(-1, 3, -1, -1).contiguous(),
        labels=torch.tensor([defective for _, defective, _ in sure]),
        domains=torch.tensor([KINDS.index(kind) for *_, kind in sure]),
        items=items,
        groups=items,
        classes=CLASSES,
        domain_names=KINDS,
    )


def corrupted(pictures: Pictures) -> Pictures:
    """Each in one way, by turns."""
    images = pictures.images.clone()
    for number, kind in enumerate(CORRUPTIONS):
        rows = slice(number, None, len(CORRUPTIONS))
        images[rows] = corrupt(images[rows], kind, SEVERITY, seed=0)
    return replace(pictures, images=images)
