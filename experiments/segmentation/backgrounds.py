"""What emoji are pasted on: real photographs that come with scikit-image, and procedural textures.

The photographs of training and of tests are different ones. The textures (gradients, stripes, fractal noise) are of
the same three kinds on both sides, with other colours, angles and noise. By scikit-image's notes the photographs are
CC0, or, those of NASA and SpaceX, in the public domain.
"""

import math

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from experiments.common.corruptions import plasma
from experiments.common.errors import folder_of

PHOTOGRAPHS = {
    "train": ("chelsea.png", "coffee.png", "hubble_deep_field.jpg", "brick.png", "grass.png"),
    "test": ("astronaut.png", "rocket.jpg", "camera.png", "gravel.png"),
}
TEXTURES = 4  # of each kind


def backgrounds(part: str, side: int) -> Tensor:
    """All backgrounds of `train` or of `test`, uint8 [N, 3, side, side]. The same on every call."""
    generator = torch.Generator().manual_seed(list(PHOTOGRAPHS).index(part))
    return torch.cat([_photographs(PHOTOGRAPHS[part], side), _textures(TEXTURES, side, generator)])


def _photographs(names: tuple[str, ...], side: int) -> Tensor:
    """The middle square of each."""
    folder = folder_of("skimage", "studies") / "data"
    squares = []
    for name in names:
        with Image.open(folder / name) as image:
            squares.append(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS))
    return rearrange(torch.from_numpy(np.stack(squares)), "n h w rgb -> n rgb h w").contiguous()


def _textures(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Two colours each, mixed by a pattern between 0 and 1."""

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    place = (torch.arange(side) + 0.5) / side - 0.5
    angle = 2 * math.pi * random(2 * count, 1, 1)
    along = angle.cos() * place + angle.sin() * rearrange(place, "y -> y 1")
    gradients = (along[:count] + 0.5).clamp(0, 1)
    waves = (4 + 16 * random(count, 1, 1)) * along[count:] + random(count, 1, 1)
    stripes = 0.5 + 0.5 * torch.sin(2 * math.pi * waves)
    noise = plasma(count, side, 1.5, generator)[:, :side, :side]
    pattern = rearrange(torch.cat([gradients, stripes, noise]), "n h w -> n 1 h w")
    one, other = random(2, 3 * count, 3, 1, 1)
    return (255 * (one + (other - one) * pattern)).round().to(torch.uint8)
