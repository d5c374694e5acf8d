"""Lightning: ImageNet's weights and a new head; the optimizer is returned as any other.

pip install '.[lightning,demo,examples]'; python -m examples.finetune_lightning
"""

from __future__ import annotations

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import hyperopt_ftp as hft
from examples.digits import pictures
from experiments.common.efficientnet import lite0


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = lite0(image_size=64, dropout=0.0).eval()  # BatchNorm keeps its statistics of ImageNet
        self.net._fc = nn.Linear(self.net._fc.in_features, 10)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        opt = hft.FTPAdamW(self.named_parameters(), lr=1e-3, exclude="net._fc.*")
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=2)}


def main(pictures_seen: int = 640) -> None:
    lightning.seed_everything(0, verbose=False)
    (train, (x, y)), model = pictures(), Classifier()
    data = DataLoader(Subset(TensorDataset(*train), range(pictures_seen)), batch_size=32, shuffle=True)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    with torch.no_grad():
        print(f"accuracy on new digits: {100 * (model.net(x).argmax(1) == y).float().mean():.1f} %")
    radii = trainer.optimizers[0].radii()  # pyright: ignore[reportAttributeAccessIssue]
    print("radii:", {name: round(radius, 3) for name, radius in radii.items() if "_blocks.1._" in name})


if __name__ == "__main__":
    main()
