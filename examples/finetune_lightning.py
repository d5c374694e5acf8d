"""Lightning: an optimizer of this package is returned as any other.

python -m examples.finetune_lightning
"""

from __future__ import annotations

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hyperopt_ftp as hft


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())  # yours: pre-trained
        self.head = nn.Linear(16, 3)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        opt = hft.FTPAdamW(self.named_parameters(), lr=1e-2, exclude="head.*")
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=3)}


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    data = DataLoader(TensorDataset(torch.randn(32, 8), torch.arange(32) % 3), batch_size=8)
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), data)
    print(trainer.optimizers[0].radii())  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main()
