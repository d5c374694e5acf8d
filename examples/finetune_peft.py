"""PEFT: LoRA's adapters are held near zero, with no memory for an anchor; the new head is free.

python -m examples.finetune_peft
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

import hyperopt_ftp as hft


def main() -> None:
    torch.manual_seed(0)
    size = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    base = ViTForImageClassification(size)  # yours: from_pretrained(...)
    lora = LoraConfig(r=4, target_modules=r".*attention.*\.(q_proj|v_proj|query|value)", modules_to_save=["classifier"])
    model = get_peft_model(base, lora)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = "*.classifier.*"
    opt = hft.FTPAdamW(named, lr=1e-2, anchor="zero", exclude=free)
    # The same with SPD: hft.SPD(torch.optim.AdamW(named, lr=1e-2), anchor="zero", exclude=free)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    for step in range(5):
        opt.zero_grad()
        loss = model(pixel_values=x, labels=y).loss
        loss.backward()
        opt.step()
        print(f"step {step}: loss {loss.item():.3f}")
    print(f"{len(opt.radii())} adapters have a radius; anchors: {sum('anchor' in s for s in opt.state.values())}")


if __name__ == "__main__":
    main()
