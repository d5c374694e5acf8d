"""Scenes of one to four emoji on a background, composed from a seed, with the class of every pixel."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from experiments.classification.data import Pictures
from experiments.common.errors import InputError

MOST = 4  # emoji in a scene
SIDES = (0.35, 0.8)  # of an emoji, as a share of the scene's
BEYOND = 0.1  # the share of an emoji's side that may be outside the scene
COMPOSING = 1  # raise when scenes look different, so that networks trained on the old ones are not taken for new

_OF_SCENE = ("count", "style", "background", "zoom", "x", "y", "mirrored")
_OF_OBJECT = ("item", "side", "x", "y", "mirrored")
_NUMBERS = len(_OF_SCENE) + MOST * len(_OF_OBJECT)  # between 0 and 1, that decide a scene


@dataclass(frozen=True)
class Scenes:
    """Scene i depends on the seed and on i alone. In another style it shows other drawings of the same emoji, and is
    otherwise the same. Emoji are drawn class by class, so that every class is equally frequent."""

    drawings: Tensor  # [style, item, 4, h, w] uint8: colours on white, and alpha
    labels: Tensor  # [item], ascending
    styles: tuple[int, ...]  # each scene is in one of these
    backgrounds: Tensor  # [N, 3, H, W] uint8
    size: int
    seed: int

    def draw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, uint8 [n, 3, size, size], and masks, int64 [n, size, size]: 0, or 1 + the class on top."""
        seed = self.seed % 2**64  # NumPy takes no negative one
        rows = [np.random.default_rng((seed, i)).random(_NUMBERS) for i in indices.tolist()]
        numbers = torch.from_numpy(np.stack(rows))
        whole: dict[str, Tensor] = dict(zip(_OF_SCENE, numbers.T, strict=False))
        each = rearrange(numbers[:, len(_OF_SCENE) :], "n (object value) -> n object value", object=MOST)
        counts = 1 + (whole["count"] * MOST).long()
        scene, depth = (torch.arange(MOST) < rearrange(counts, "n -> n 1")).nonzero().T
        style = torch.tensor(self.styles)[(whole["style"] * len(self.styles)).long()]
        colours, alpha, labels = self._objects(style[scene], dict(zip(_OF_OBJECT, each[scene, depth].T, strict=True)))
        images = self._background(whole)
        masks = torch.zeros(len(indices), self.size, self.size, dtype=torch.long)
        for level in range(MOST):  # later ones on top
            of_level = (depth == level).nonzero().flatten()
            under, over = scene[of_level], alpha[of_level]
            images[under] = colours[of_level] + (1 - over) * images[under]
            solid = rearrange(over, "n 1 h w -> n h w") >= 0.5
            masks[under] = torch.where(solid, rearrange(labels[of_level] + 1, "n -> n 1 1"), masks[under])
        return images.round_().clamp_(0, 255).to(torch.uint8), masks

    def _background(self, of_scene: dict[str, Tensor]) -> Tensor:
        """Up to twice as large as the scene, and moved so that it covers it."""
        chosen = (of_scene["background"] * len(self.backgrounds)).long()
        side = 1 + of_scene["zoom"]
        x, y = (1 - side / 2 + of_scene[axis] * (side - 1) for axis in "xy")
        return placed(self.backgrounds[chosen].float(), side, x, y, of_scene["mirrored"] < 0.5, self.size)

    def _objects(self, style: Tensor, of_object: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Colours times alpha, [n, 3, size, size], alpha, [n, 1, size, size], and class of every object."""
        _, sizes = self.labels.unique_consecutive(return_counts=True)
        place = of_object["item"] * len(sizes)
        group = place.long()
        item = (sizes.cumsum(0) - sizes)[group] + ((place - group) * sizes[group]).long()
        side = SIDES[0] + (SIDES[1] - SIDES[0]) * of_object["side"]
        margin = (0.5 - BEYOND) * side
        x, y = (margin + of_object[axis] * (1 - 2 * margin) for axis in "xy")
        drawn = self.drawings[style, item].float()
        drawn[:, :3] -= 255 - drawn[:, 3:]  # white is taken away: what is left is colour times alpha
        sampled = placed(drawn, side, x, y, of_object["mirrored"] < 0.5, self.size)
        return sampled[:, :3], sampled[:, 3:] / 255, self.labels[item]

    def fingerprint(self) -> str:
        """A digest of everything that decides how scenes look."""
        digest = hashlib.sha256(repr((COMPOSING, MOST, SIDES, BEYOND, self.styles, self.size, self.seed)).encode())
        for tensor in (self.drawings, self.labels, self.backgrounds):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def scenes(pictures: Pictures, backgrounds: Tensor, *, size: int, seed: int) -> Scenes:
    """Scenes of these emoji in the styles (domains) that they are drawn in, mixed."""
    if pictures.alpha is None:
        raise InputError("scenes need pictures with an alpha channel: the built-in emoji have one")
    numbers = pictures.domains.unique().tolist()
    domains = [pictures.of_domain(number) for number in numbers]
    if any(domain.items != domains[0].items for domain in domains):
        raise InputError("scenes need every item in every domain, in the same order")
    order = domains[0].labels.argsort(stable=True)
    drawings = [
        torch.cat([domain.images, rearrange(domain.alpha, "n h w -> n 1 h w")], dim=1)[order]
        for domain in domains
        if domain.alpha is not None
    ]
    return Scenes(
        drawings=torch.stack(drawings),
        labels=domains[0].labels[order],
        styles=tuple(range(len(domains))),
        backgrounds=backgrounds,
        size=size,
        seed=seed,
    )


def placed(pictures: Tensor, side: Tensor, x: Tensor, y: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Square pictures on empty canvases: of side `side` around (x, y), as shares of the canvas."""
    canvas = (torch.arange(size) + 0.5) / size

    def in_picture(middle: Tensor) -> Tensor:  # -1 and 1 are the picture's edges
        return (2 * (canvas - rearrange(middle, "n -> n 1")) / rearrange(side, "n -> n 1")).float()

    columns = torch.where(rearrange(mirrored, "n -> n 1"), -1, 1) * in_picture(x)
    grid = torch.empty(len(pictures), size, size, 2)
    grid[..., 0] = rearrange(columns, "n x -> n 1 x")
    grid[..., 1] = rearrange(in_picture(y), "n y -> n y 1")
    return F.grid_sample(pictures, grid, align_corners=False)
