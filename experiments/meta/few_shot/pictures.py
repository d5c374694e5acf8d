"""One episode as a picture that fits into a record."""

import base64
import io

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from experiments.meta.few_shot.config import Config
from experiments.meta.few_shot.data import Data, World


def episode(data: Data, world: World, config: Config) -> dict:
    """A row for each class of the first test episode: what is learned from, a gap, what is predicted."""
    first = world.episodes("test", 1, max(config.shots), config.queries)
    support, query = data.images[first.support[0]], data.images[first.query[0]]
    table = torch.cat([support, torch.full_like(support[:, :1], 255), query], dim=1)
    image = rearrange(table, "row column rgb h w -> (row h) (column w) rgb").numpy()
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    of_emoji = {number: name for name, emoji in world.parts["test"].items() for number in emoji}
    names = [of_emoji[int(row[0]) % data.emoji] for row in first.support[0]]
    return {"png": base64.b64encode(file.getvalue()).decode(), "rows": names, "size": table.shape[-1]}


def pictures(kept: dict) -> Tensor:
    """[row, column, rgb, height, width] of what `episode` has kept."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept["png"]))).convert("RGB"))
    size = kept["size"]
    return rearrange(torch.from_numpy(image.copy()), "(r h) (c w) rgb -> r c rgb h w", h=size, w=size)
