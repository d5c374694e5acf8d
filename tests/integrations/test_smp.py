"""segmentation_models_pytorch: the encoder is held, the decoder and the head are free."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

from .runs import has_moved, is_equal

smp = pytest.importorskip("segmentation_models_pytorch")

NEW = ["decoder.*", "segmentation_head.*"]


def unet():
    torch.manual_seed(0)
    small = {"encoder_depth": 3, "decoder_channels": (16, 8, 4)}
    return smp.Unet("tu-test_resnet", encoder_weights=None, classes=3, **small)


def train(model, opt, steps: range) -> None:
    loss = smp.losses.DiceLoss("multiclass")
    for step in steps:
        g = torch.Generator().manual_seed(step)
        opt.zero_grad()
        x, y = torch.randn(2, 3, 16, 16, generator=g), torch.randint(3, (2, 16, 16), generator=g)
        loss(model(x), y).backward()
        opt.step()


def test_the_encoder_is_held_and_the_decoder_free():
    model = unet()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = hft.FTPAdamW(model.named_parameters(), lr=1e-2, exclude=NEW)
    train(model, opt, range(3))
    radii = opt.radii()
    assert set(radii) == {name for name, p in model.encoder.named_parameters("encoder") if p.grad is not None}
    distance = {
        name: (p.detach() - start[name]).flatten(min(1, p.ndim - 1)).abs().sum(-1).max()
        for name, p in model.named_parameters()
    }
    assert all(distance[name] <= radius * (1 + 1e-4) + 1e-6 for name, radius in radii.items())
    free = [name for name in distance if not name.startswith("encoder.")]
    assert len(free) > 10
    assert max(distance[name] for name in free) > max(radii.values())  # no such ball there


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    whole, first = unet(), unet()
    train(whole, hft.FTPAdamW(whole.named_parameters(), lr=1e-2, exclude=NEW), range(4))
    opt = hft.FTPAdamW(first.named_parameters(), lr=1e-2, exclude=NEW)
    train(first, opt, range(2))
    first.save_pretrained(str(tmp_path / "model"))
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    second = smp.from_pretrained(str(tmp_path / "model")).train()
    opt = hft.FTPAdamW(second.named_parameters(), lr=1e-2, exclude=NEW)
    opt.load_state_dict(torch.load(tmp_path / "opt.pt", weights_only=True))
    train(second, opt, range(2, 4))
    assert is_equal(whole, second)
    assert has_moved(whole.decoder, unet().decoder)
