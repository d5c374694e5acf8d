"""Accelerate: the optimizer is prepared like any other; a step takes the gradients of two batches, in bfloat16.

python -m examples.finetune_accelerate
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hyperopt_ftp as hft


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))  # yours: pre-trained
    ftp = hft.FTPAdamW(model.named_parameters(), lr=1e-2, exclude="2.*")
    data = DataLoader(TensorDataset(torch.randn(64, 8), torch.arange(64) % 3), batch_size=8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(ftp, T_max=12)
    model, opt, data, schedule = accelerator.prepare(model, ftp, data, schedule)
    for epoch in range(3):
        losses = []
        for x, y in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                losses.append(loss.item())
                opt.step()
                schedule.step()
                opt.zero_grad()
        print(f"epoch {epoch}: mean loss {sum(losses) / len(losses):.3f}")
    print(ftp.radii())  # the optimizer itself, which accelerator.prepare has wrapped


if __name__ == "__main__":
    main()
