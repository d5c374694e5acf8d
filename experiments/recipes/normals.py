"""Surface normals in PNG files: value v of red, green, blue is 2 v / 255 - 1 along x, y, z."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.common.errors import InputError
from experiments.common.pictures import open_picture

ENCODING = "value v of red, green, blue is 2 v / 255 - 1 along x, y, z; black is no normal"
LONGEST = 1.5  # a unit vector in 8 bits is 1.02 at most; what is no normal is often longer, as white is: 1.73


def read_normals(file: Path) -> Image.Image:
    """Black, or grey of 127 and 128, is no normal; any other pixel is one, also where its length is not quite 1."""
    image = open_picture(file, ("PNG",))
    if image.mode != "RGB":
        raise InputError(f"the normals {file} have the mode {image.mode}; save them as 8-bit RGB: {ENCODING}")
    pixels = np.asarray(image)
    squares = np.square(2 * pixels.astype(np.int32) - 255).sum(-1)
    wrong = (squares > (LONGEST * 255) ** 2) & pixels.any(-1)
    if wrong.any():
        first = tuple(pixels[wrong][0].tolist())
        raise InputError(f"the normals {file} have a pixel {first}, which is no unit vector; {ENCODING}")
    return image


def directions(image: Image.Image) -> Tensor:
    """Unit vectors [3, h, w]; zero where there is no normal."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    vectors = 2 * values.float() - 255
    none = (values == 0).all(dim=0) | (vectors.abs() == 1).all(dim=0)
    return torch.where(none, 0, F.normalize(vectors, dim=0))


def mirrored(normals: Tensor) -> Tensor:
    """Left and right are exchanged in the picture, hence in the vectors, too."""
    x, *others = normals.flip(-1)
    return torch.stack([-x, *others])
