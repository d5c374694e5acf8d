"""Figures of the pictures themselves, from sheets in PNG: a row for each class, as many columns as pictures a class."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from experiments.common.figures import SMALL, WIDTH, save


def packed(pictures: Tensor, classes: int) -> str:
    """The sheet as a PNG file in base64: 8 bits a value, and nothing else is lost."""
    sheet = rearrange(pictures, "(label n) c h w -> (label h) (n w) c", label=classes)
    values = (255 * sheet).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def unpacked(png: str, classes: int) -> np.ndarray:
    """[class, n, height, width, 3] uint8; pictures are square."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    side = sheet.shape[0] // classes
    return rearrange(sheet, "(label h) (n w) c -> label n h w c", h=side, w=side)


def one_a_class(file: Path, sheets: Mapping[str, str], classes: Sequence[str]) -> None:
    """A row for each class, a column for each kind of pictures."""
    figure = Figure(figsize=(WIDTH, 0.4 + 0.75 * len(classes)), layout="constrained")
    grid = figure.subplots(len(classes), len(sheets), squeeze=False)
    for column, (kind, png) in enumerate(sheets.items()):
        for row, pictures in enumerate(unpacked(png, len(classes))):
            axes = grid[row, column]
            _show(axes, pictures[0])
            if row == 0:
                axes.set_title(kind, fontsize=10)
            if column == 0:
                axes.set_ylabel(_broken(classes[row]), rotation=0, ha="right", va="center", fontsize=SMALL)
    save(figure, file)


def few_a_class(file: Path, sheets: Mapping[str, str], classes: Sequence[str]) -> None:
    """A panel for each kind of pictures, in it a row for each class."""
    rows = -(-len(sheets) // 2)
    figure = Figure(figsize=(WIDTH, rows * (0.35 + 0.21 * len(classes))), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for number, (axes, (kind, png)) in enumerate(zip(grid.ravel(), sheets.items(), strict=True)):
        pictures = unpacked(png, len(classes))
        side = pictures.shape[2]
        framed = np.pad(pictures, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
        _show(axes, rearrange(framed, "label n h w c -> (label h) (n w) c"))
        axes.set_title(kind, fontsize=10)
        if number % 2 == 0:
            axes.set_yticks((np.arange(len(classes)) + 0.5) * (side + 1) - 1, classes, fontsize=SMALL)
    save(figure, file)


def _show(axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _broken(name: str) -> str:
    return name.replace(" & ", "\n& ")
