"""segmentation_models_pytorch: the encoder is held near its pre-trained weights, the new decoder is free.

python -m examples.finetune_smp
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch

import hyperopt_ftp as hft


def main() -> None:
    torch.manual_seed(0)
    small = {"encoder_depth": 3, "decoder_channels": (16, 8, 4)}
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3, **small)  # yours: "resnet50", "imagenet"
    opt = hft.FTPAdamW(model.named_parameters(), lr=1e-3, exclude=["decoder.*", "segmentation_head.*"])
    criterion = smp.losses.DiceLoss("multiclass")
    x, y = torch.randn(4, 3, 32, 32), torch.randint(3, (4, 32, 32))
    for step in range(5):
        opt.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        opt.step()
        print(f"step {step}: loss {loss.item():.3f}")
    print("held:", ", ".join(sorted({name.split(".")[0] for name in opt.radii()})))


if __name__ == "__main__":
    main()
