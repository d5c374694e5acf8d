"""Corruptions of pictures: strength, statistics that follow from their formulas, and what is random."""

import colorsys

import pytest
import torch
from einops import rearrange

from experiments.common.corruptions import CONSTANTS, CORRUPTIONS, SEVERITIES, corrupt, plasma

NOISY = {"fog", "gaussian noise"}


@pytest.fixture
def pictures():
    """Neither dark nor bright, with some detail, 80 x 100."""
    clouds = plasma(12, 128, 1.3, torch.Generator().manual_seed(0))[:, :80, :100]
    return rearrange((50 + 120 * clouds).to(torch.uint8), "(n rgb) h w -> n rgb h w", rgb=3)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_seed_alone_decides(pictures, kind):
    before, state = pictures.clone(), torch.get_rng_state()
    first = corrupt(pictures, kind, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pictures, before)
    assert (first.dtype, first.shape) == (torch.uint8, pictures.shape)
    torch.manual_seed(5)
    assert torch.equal(corrupt(pictures, kind, 3, seed=1), first)
    assert torch.equal(corrupt(pictures, kind, 3, seed=2), first) == (kind not in NOISY)
    assert corrupt(pictures[:0], kind, 3, seed=1).shape == (0, 3, 80, 100)
    assert corrupt(pictures[:, :, :1, :5], kind, 5, seed=1).shape == (4, 3, 1, 5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_deviation(severity):
    grey = torch.full((20, 3, 64, 64), 128, dtype=torch.uint8)
    noise = corrupt(grey, "gaussian noise", severity, 0).float() / 255 - 128 / 255
    (deviation,) = CONSTANTS["gaussian noise"][severity - 1]
    within = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.75))  # half of all noise, whatever is clipped
    assert noise.abs().median() == pytest.approx(float(within * deviation), rel=0.02, abs=0.5 / 255)
    assert noise.mean() == pytest.approx(0, abs=0.004)
    assert noise[:, 0].flatten() @ noise[:, 1].flatten() / noise[:, 0].numel() < 0.03 * deviation**2  # of each channel


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_the_value_of_hsv(severity):
    colours = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    colours[:, 0] = 0
    (shift,) = CONSTANTS["brightness"][severity - 1]
    expected = []
    for colour in (colours.T / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1)))
    bright = corrupt(rearrange(colours, "rgb n -> 1 rgb 1 n"), "brightness", severity, 0)
    assert (rearrange(bright, "1 rgb 1 n -> n rgb") - 255 * torch.tensor(expected)).abs().max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_follows_its_formula(severity):
    amount, _ = CONSTANTS["fog"][severity - 1]
    white = corrupt(torch.full((2, 3, 64, 64), 255, dtype=torch.uint8), "fog", severity, 0)
    assert white.amin(dim=(1, 2, 3)).tolist() == [round(255 / (1 + amount))] * 2  # where there is none, all is scaled
    assert white.amax(dim=(1, 2, 3)).tolist() == [255] * 2
    assert torch.equal(white[:, 0], white[:, 2])
    assert not torch.equal(white[0], white[1])
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert torch.equal(corrupt(black, "fog", severity, 0), black)  # nothing is brighter than what was brightest
