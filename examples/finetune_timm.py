"""timm: learning rates that fall layer by layer, one of its schedules, and the head left free.

python -m examples.finetune_timm
"""

from __future__ import annotations

import timm
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from hyperopt_ftp.integrations.timm import create_optimizer


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=3)  # yours: pretrained=True
    opt = create_optimizer(model, "ftpadamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    schedule = CosineLRScheduler(opt, t_initial=10, warmup_t=2, warmup_lr_init=1e-4, t_in_epochs=False)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    for step in range(10):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        schedule.step_update(step + 1)
        print(f"step {step}: loss {loss.item():.3f}")
    held = sum(sum(group["constrained"]) for group in opt.param_groups)
    print(f"{held} tensors are held near their first values; the head's {len(opt.state) - held} are free")


if __name__ == "__main__":
    main()
