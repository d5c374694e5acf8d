"""Shapes in colours, as somebody draws who tries an optimizer for the first time: on white, inverted, and on tiles."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from experiments.classification.data import Pictures

SIZE, EACH, TILE = 64, 125, 16
#: So many corners, every second one nearer to the middle.
SHAPES = {
    "triangle": (3, 1.0),
    "square": (4, 1.0),
    "pentagon": (5, 1.0),
    "circle": (48, 1.0),
    "star of three": (6, 0.4),
    "star of four": (8, 0.5),
    "star of five": (10, 0.5),
    "wheel": (24, 0.75),
}
DOMAINS = ("white", "inverted", "tiles")


def drawn_pictures() -> Pictures:
    """EACH of every shape, with a place, a size, a turn and a colour of its own; each in all domains."""
    random, images = np.random.default_rng(0), []
    for corners, inner in SHAPES.values():
        for _ in range(EACH):
            radius = random.uniform(SIZE / 6, SIZE / 3)
            angles = random.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
            reach = np.resize([radius, radius * inner] if inner < 1 else [radius], corners)
            middle = random.uniform(radius, SIZE - radius, 2)
            outline = middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
            canvas = Image.new("L", (SIZE, SIZE))
            ImageDraw.Draw(canvas).polygon([(x, y) for x, y in outline.tolist()], fill=1)
            inside, colour = np.asarray(canvas) == 1, random.integers(0, 200, (3, 1, 1))
            tiles = np.kron(random.integers(0, 256, (3, SIZE // TILE, SIZE // TILE)), np.ones((1, TILE, TILE), int))
            white = np.where(inside, colour, 255)
            images += [white, 255 - white, np.where(inside, colour, tiles)]
    shapes = [number for number in range(len(SHAPES)) for _ in range(EACH)]
    items = tuple(f"{number}" for number in range(len(shapes)) for _ in DOMAINS)
    return Pictures(
        images=torch.from_numpy(np.stack(images)).to(torch.uint8),
        labels=torch.tensor(shapes).repeat_interleave(len(DOMAINS)),
        domains=torch.arange(len(DOMAINS)).repeat(len(shapes)),
        items=items,
        groups=items,
        classes=tuple(SHAPES),
        domain_names=DOMAINS,
    )
