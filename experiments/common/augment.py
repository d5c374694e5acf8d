"""Augmentation of whole batches of uint8 pictures."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def flip_and_shift(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Mirror every second picture on average and move each by up to `shift` pixels; what comes in is white."""
    count, _, height, width = images.shape
    flipped = torch.rand(count, generator=generator) < 0.5
    images = torch.where(rearrange(flipped, "n -> n 1 1 1"), images.flip(-1), images)
    padded = F.pad(images, (shift,) * 4, value=255)
    moves = torch.randint(2 * shift + 1, (2, count), generator=generator)
    rows = rearrange(moves[0], "n -> n 1 1") + rearrange(torch.arange(height), "h -> h 1")
    columns = rearrange(moves[1], "n -> n 1 1") + torch.arange(width)
    each = rearrange(torch.arange(count), "n -> n 1 1")
    return rearrange(padded[each, :, rows, columns], "n h w c -> n c h w")
