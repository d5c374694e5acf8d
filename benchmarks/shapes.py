"""Shapes of the parameters of real models, without weights."""

from __future__ import annotations

import torch
import torchvision

Shapes = list[torch.Size]


def segformer_b0(classes: int = 150) -> Shapes:
    """SegFormer-B0, from its description (arXiv 2105.15203): encoder MiT-B0 and the all-MLP decoder."""
    widths, depths, reductions, patches, hidden = (32, 64, 160, 256), (2, 2, 2, 2), (8, 4, 2, 1), (7, 3, 3, 3), 256
    shapes: list[tuple[int, ...]] = []

    def linear(into: int, out: int) -> None:
        shapes.extend([(out, into), (out,)])

    def norm(width: int) -> None:
        shapes.extend([(width,), (width,)])

    before = 3
    for width, depth, reduction, patch in zip(widths, depths, reductions, patches, strict=True):
        shapes.extend([(width, before, patch, patch), (width,)])
        norm(width)
        for _ in range(depth):
            norm(width)
            linear(width, width)
            linear(width, 2 * width)
            if reduction > 1:
                shapes.extend([(width, width, reduction, reduction), (width,)])
                norm(width)
            linear(width, width)
            norm(width)
            linear(width, 4 * width)
            shapes.extend([(4 * width, 1, 3, 3), (4 * width,)])
            linear(4 * width, width)
        norm(width)
        before = width
    for width in widths:
        linear(width, hidden)
    shapes.append((hidden, 4 * hidden, 1, 1))
    norm(hidden)
    shapes.extend([(classes, hidden, 1, 1), (classes,)])
    return [torch.Size(shape) for shape in shapes]


def _of(name: str) -> Shapes:
    with torch.device("meta"):
        return [p.shape for p in getattr(torchvision.models, name)().parameters()]


SHAPES = {
    "vit_b_16": lambda: _of("vit_b_16"),
    "resnet50": lambda: _of("resnet50"),
    "swin_t": lambda: _of("swin_t"),
    "segformer_b0": segformer_b0,
}
