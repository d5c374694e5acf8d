"""Scenes of two to five solids in the corner of a room, drawn from a seed, with the normal of every pixel."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from experiments.normals.solids import FAR, KINDS, hit, plane, turned
from experiments.normals.textures import CHECKERS, DOTS, MARBLE, PLAIN, STRIPES, texture

FEWEST, MOST = 2, 5  # solids in a scene
VIEW = 0.5  # tangent of half the angle of view
DRAWING = 1  # raise when scenes look different, so that networks trained on the old ones are not taken for new

#: Textures and lights by domain. Solids, places and colours are the same in all of them.
DOMAINS = ("clean", "textures", "lights")
USUAL, OTHER = (PLAIN, CHECKERS, STRIPES), (DOTS, MARBLE)

_OF_SCENE = ("count", "yaw", "pitch", "light_x", "light_y", "light_z", "tint_r", "tint_g", "tint_b")
_OF_SURFACE = ("kind", "x", "y", "z", "turn_y", "turn_x", "turn_z", "radius_x", "radius_y", "radius_z",
               "texture", "frequency", "r1", "g1", "b1", "r2", "g2", "b2", "shine")  # fmt: skip
_SURFACES = MOST + 3  # the floor and two walls
_NUMBERS = len(_OF_SCENE) + _SURFACES * len(_OF_SURFACE)  # between 0 and 1, that decide a scene


@dataclass(frozen=True)
class Scenes:
    """Scene i depends on the seed and on i alone, up to rounding: in another domain it is the same scene with other
    textures, or in other light. The camera looks along -z, x is to the right, y up; normals look towards it."""

    domains: tuple[int, ...]  # each scene is in one of these
    size: int
    seed: int

    def draw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, uint8 [n, 3, size, size], and unit normals, float32 [n, 3, size, size]."""
        seed = self.seed % 2**64  # NumPy takes no negative one
        rows = [np.random.default_rng((seed, i)).random(_NUMBERS + 1) for i in indices.tolist()]
        numbers = torch.from_numpy(np.stack(rows)).float()
        domain = torch.tensor(self.domains)[(numbers[:, -1] * len(self.domains)).long()]
        of_scene: dict[str, Tensor] = dict(zip(_OF_SCENE, numbers.T, strict=False))
        each = rearrange(numbers[:, len(_OF_SCENE) : -1], "n (s v) -> v s n", s=_SURFACES)
        surfaces: dict[str, Tensor] = dict(zip(_OF_SURFACE, each, strict=True))  # each [surface, n]
        directions = _directions(self.size)
        normals, points, index = _seen(of_scene, surfaces, directions)
        colours = _coloured(surfaces, points, index, domain)
        lit = _lit(of_scene, surfaces, colours, normals, index, directions, domain)
        images = (255 * lit).round().clamp(0, 255).to(torch.uint8)
        back = "n (h w) c -> n c h w"
        return rearrange(images, back, h=self.size), rearrange(normals, back, h=self.size)

    def fingerprint(self) -> str:
        """A digest of everything that decides how scenes look."""
        about = (DRAWING, FEWEST, MOST, VIEW, DOMAINS, USUAL, OTHER, self.domains, self.size, self.seed)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _directions(size: int) -> Tensor:
    """Of the rays through the middles of the pixels, row by row: [size * size, 3]."""
    across = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-VIEW * across, VIEW * across, indexing="ij")
    return torch.stack([x, y, -torch.ones_like(x)], -1).reshape(-1, 3)


def _between(low: float, high: float, number: Tensor) -> Tensor:
    return low + (high - low) * number


def _seen(
    of_scene: dict[str, Tensor], surfaces: dict[str, Tensor], directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pixel: the normal, the point in the surface's own axes, and the number of the surface."""
    count = FEWEST + (of_scene["count"] * (MOST + 1 - FEWEST)).long()
    rays = len(directions)
    nearest = torch.full((len(count), rays), FAR)
    normals, points = torch.zeros(len(count), rays, 3), torch.zeros(len(count), rays, 3)
    index = torch.zeros(len(count), rays, dtype=torch.long)

    def keep(number: int, distance: Tensor, normal: Tensor, point: Tensor) -> None:
        nearer = distance < nearest
        nearest[nearer], index[nearer] = distance[nearer], number
        normals[nearer], points[nearer] = normal[nearer], point[nearer]

    yaw, pitch = _between(-1.2, -0.3, of_scene["yaw"]), _between(0.15, 0.6, of_scene["pitch"])
    room = turned(torch.stack([yaw, pitch, torch.zeros_like(yaw)], -1))
    # The floor and two walls of a room that is turned about its corner.
    corner = torch.tensor([0.0, -0.9, -6.5])
    for number, axis in enumerate((1, 0, 2)):
        normal = room[:, :, axis]
        distance = plane(normal, normal @ corner, directions)
        point = torch.einsum("nij,npi->npj", room, rearrange(distance, "n p -> n p 1") * directions - corner)
        # A plane goes through the axes' origin, where textures have an edge: rounding would decide on which side it is.
        point = point + 0.1
        keep(MOST + number, distance, rearrange(normal, "n i -> n 1 i").expand(-1, rays, -1), point)
    for number in range(MOST):
        own = {name: values[number] for name, values in surfaces.items()}
        depth = _between(-5.5, -3.2, own["z"])
        centre = torch.stack(
            [_between(-0.8, 0.8, own["x"]) * VIEW * -depth, _between(-0.8, 0.5, own["y"]) * VIEW * -depth, depth], -1
        )
        radii = torch.stack([_between(0.25, 0.7, own[f"radius_{axis}"]) for axis in "xyz"], -1)
        rotation = turned(torch.stack([_between(0, 2 * torch.pi, own[f"turn_{axis}"]) for axis in "yxz"], -1))
        distance, normal, point = hit((own["kind"] * KINDS).long(), centre, rotation, radii, directions)
        distance = torch.where(rearrange(count > number, "n -> n 1"), distance, FAR)
        keep(number, distance, normal, point * rearrange(radii, "n i -> n 1 i"))
    return normals, points, index


def _coloured(surfaces: dict[str, Tensor], points: Tensor, index: Tensor, domain: Tensor) -> Tensor:
    """Two colours of each surface, mixed by its texture: [n, p, 3]."""
    colours = torch.zeros_like(points)
    others = torch.tensor(OTHER)[(surfaces["texture"] * len(OTHER)).long()]
    usual = torch.tensor(USUAL)[(surfaces["texture"] * len(USUAL)).long()]
    kinds = torch.where(domain == DOMAINS.index("textures"), others, usual)
    for number in range(_SURFACES):
        own = {name: values[number] for name, values in surfaces.items()}
        share = texture(kinds[number], points, _between(1.5, 4.0, own["frequency"])).unsqueeze(-1)
        one, two = (
            rearrange(_between(0.15, 1.0, torch.stack([own[f"{c}{which}"] for c in "rgb"], -1)), "n c -> n 1 c")
            for which in (1, 2)
        )
        colours = torch.where((index == number).unsqueeze(-1), one + share * (two - one), colours)
    return colours


def _lit(
    of_scene: dict[str, Tensor],
    surfaces: dict[str, Tensor],
    colours: Tensor,
    normals: Tensor,
    index: Tensor,
    directions: Tensor,
    domain: Tensor,
) -> Tensor:
    """Lambert's law and a highlight (Blinn-Phong): one light from above on the left; in other light one from below on
    the right, of another colour, with less around it."""
    wobble = torch.stack([of_scene[f"light_{axis}"] for axis in "xyz"], -1) - 0.5
    other = rearrange(domain == DOMAINS.index("lights"), "n -> n 1")
    light = torch.where(other, torch.tensor([0.9, -0.4, 0.5]), torch.tensor([-0.5, 0.8, 0.6])) + 0.6 * wobble
    light = rearrange(F.normalize(light, dim=-1), "n i -> n 1 i")
    tint = torch.stack([of_scene[f"tint_{c}"] for c in "rgb"], -1)
    tint = rearrange(torch.where(other, _between(0.3, 1.2, tint), 1.0), "n c -> n 1 c")
    around = rearrange(torch.where(other, 0.12, 0.35), "n 1 -> n 1 1")
    falling = (normals * light).sum(-1, keepdim=True).clamp(min=0)
    half = F.normalize(light - F.normalize(directions, dim=-1), dim=-1)
    shine = surfaces["shine"].T.gather(1, index).unsqueeze(-1)
    glow = 0.4 * shine * (normals * half).sum(-1, keepdim=True).clamp(min=0) ** 24
    return colours * (around + 0.75 * falling * tint) + glow * tint * (falling > 0)
