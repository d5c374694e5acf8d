"""Four of the corruptions of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261), for pictures of any size.

Written from their formulas, with their published constants. Those are for pictures of 224 pixels. Where the shorter
side is smaller, the radius of the defocus (and of the softening of its rim) shrinks in proportion; a larger picture
keeps them. Fog is plasma on the smallest square of a power of two that covers the picture, so its largest clouds span
the picture at every size, as they do at 224; a smaller picture only lacks the finest ones. Noise and brightness act on
single pixels and stay as they are.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

CORRUPTIONS = ("fog", "defocus blur", "gaussian noise", "brightness")
SEVERITIES = (1, 2, 3, 4, 5)
PUBLISHED = 224  # side of the pictures that the constants are for


def corrupt(images: Tensor, kind: str, severity: int, seed: int) -> Tensor:
    """Corrupt uint8 pictures [N, 3, H, W]; `seed` alone decides what is random.

    Every severity of a kind draws the same random numbers, so that severities differ in strength alone.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {kind!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"unknown severity {severity!r}; choose from {', '.join(map(str, SEVERITIES))}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures must be uint8 [N, 3, H, W], not {images.dtype} {list(images.shape)}")
    if not images.numel():
        return images.clone()
    generator = torch.Generator().manual_seed(seed)
    strength = CONSTANTS[kind][severity - 1]
    corrupted = FORMULAS[kind](images.float() / 255, *strength, generator)
    return (corrupted * 255).round().clamp(0, 255).to(torch.uint8)


def fog(images: Tensor, amount: float, decay: float, generator: torch.Generator) -> Tensor:
    """Add plasma, then scale so that what was brightest keeps its value under the thickest fog."""
    count, _, height, width = images.shape
    clouds = plasma(count, max(height, width), decay, generator)[:, :height, :width]
    brightest = reduce(images, "n c h w -> n 1 1 1", "max")
    clouds = rearrange(clouds, "n h w -> n 1 h w").to(images.device)
    return (images + amount * clouds) * brightest / (brightest + amount)


def plasma(count: int, side: int, decay: float, generator: torch.Generator) -> Tensor:
    """Fractal noise between 0 and 1, [count, S, S] with S the power of two from `side` up, by diamond-square.

    The square wraps around. Every halving of the step divides the random part by `decay` squared: in the published
    code the decaying factor enters twice.
    """
    size = max(2, 1 << (side - 1).bit_length())
    spread = 1.0

    def around(total: Tensor) -> Tensor:
        return total / 4 + spread * (2 * torch.rand(total.shape, generator=generator) - 1)

    field = torch.zeros(count, size, size)
    step = size
    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step]
        below = corners + corners.roll(-1, 1)
        centres = around(below + below.roll(-1, 2))  # squares: the four corners around each centre
        field[:, half::step, half::step] = centres
        beside = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        above = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, ::step, half::step] = around(beside)  # diamonds: two corners and two centres around each edge
        field[:, half::step, ::step] = around(above)
        spread /= decay**2
        step = half
    field -= reduce(field, "n h w -> n 1 1", "min")
    return field / reduce(field, "n h w -> n 1 1", "max")


def defocus_blur(images: Tensor, radius: float, softness: float, generator: torch.Generator) -> Tensor:
    """Every point becomes a disk."""
    shorter = min(images.shape[-2:])
    scale = min(1.0, shorter / PUBLISHED)
    kernel = disk(radius * scale, softness * scale, shorter - 1).to(images.device)
    flat = rearrange(images, "n c h w -> (n c) 1 h w")
    padded = F.pad(flat, (len(kernel) // 2,) * 4, mode="reflect")
    blurred = F.conv2d(padded, rearrange(kernel, "h w -> 1 1 h w"))
    return rearrange(blurred, "(n c) 1 h w -> n c h w", c=3)


def disk(radius: float, softness: float, largest: int) -> Tensor:
    """A kernel that sums to one: how much of each pixel is inside the disk, with a rim softened by a Gaussian.

    Measured at 9 x 9 points of each pixel, so that radii between whole numbers differ.
    """
    points = 9
    half = min(largest, math.ceil(radius + 2 * softness))
    fine = (torch.arange((2 * half + 1) * points) + 0.5) / points - half - 0.5
    inside = (fine.square() + rearrange(fine, "y -> y 1").square() <= radius**2).float()
    shares = reduce(inside, "(h y) (w x) -> h w", "mean", y=points, x=points)
    places = torch.arange(-half, half + 1)
    weights = torch.exp(-(places - rearrange(places, "y -> y 1")).square() / (2 * softness**2))
    softened = weights @ shares @ weights
    return softened / softened.sum()


def gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator).to(images.device)


def brightness(images: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Raise V of HSV. With H and S fixed, RGB is proportional to V; black has no colour and turns grey."""
    value = reduce(images, "n c h w -> n 1 h w", "max")
    raised = (value + shift).clamp(max=1)
    return torch.where(value > 0, images / value.clamp(min=1e-6) * raised, raised)


CONSTANTS: dict[str, tuple[tuple[float, ...], ...]] = {
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, decay
    "defocus blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, softness
    "gaussian noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),  # standard deviation
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),  # shift
}
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "fog": fog,
    "defocus blur": defocus_blur,
    "gaussian noise": gaussian_noise,
    "brightness": brightness,
}
