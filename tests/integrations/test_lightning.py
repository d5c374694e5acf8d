"""Lightning: plain classes in configure_optimizers, and its own checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from .runs import BUILD, by_hand, every_build, has_moved, is_equal, loader, network

lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


class Module(lightning.LightningModule):
    def __init__(self, name: str, decay: int = 4) -> None:
        super().__init__()
        self.net, self.name, self.decay, self.seen = network(), name, decay, []

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        opt = BUILD[self.name](self.named_parameters())
        schedule = torch.optim.lr_scheduler.StepLR(opt, self.decay)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.name == "FTPAdamW":
            hft.watch(self.optimizers(), lambda step, layers: self.seen.append(step), first=self.global_step)


def fit(module: Module, epochs: int, keep=None, path=None, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[keep] if keep else [], enable_checkpointing=bool(keep),
        **quiet, **options,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=path, weights_only=True if path else None)
    return trainer


@every_build
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    """With its gradient clipping and accumulation, which happen in the closure that it hands to the step."""
    more = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    whole, first, second = Module(name), Module(name), Module(name)
    fit(whole, 2, **more)
    keep = ModelCheckpoint(tmp_path, filename="kept")
    fit(first, 1, keep, **more)
    going_on = fit(second, 2, ModelCheckpoint(tmp_path), keep.best_model_path, **more)
    assert going_on.global_step == 6
    assert has_moved(whole, first)
    assert is_equal(whole, second)
    (opt,) = going_on.optimizers
    assert type(opt).__name__ == name
    assert not hasattr(opt, "radii") or set(opt.radii()) == {"net.0.weight", "net.0.bias"}
    assert (first.seen, second.seen) == (([1, 2, 3], [4, 5, 6]) if name == "FTPAdamW" else ([], []))


@every_build
def test_bf16_mixed_with_clipping_as_torchs_adamw(name):
    """It refuses to clip for an optimizer that says it unscales gradients itself: by default none of ours does."""
    module = Module(name)
    fit(module, 1, precision="bf16-mixed", gradient_clip_val=0.5)
    assert has_moved(module, Module(name))


def test_training_equals_a_plain_loop():
    module = Module("FTPAdamW")
    (trained,) = fit(module, 1).optimizers
    net, opt = by_hand("FTPAdamW", every=1, decay=4)
    assert has_moved(net, network())
    assert is_equal(module.net, net)
    assert list(trained.radii().values()) == list(opt.radii().values())


def test_what_lightning_makes_of_an_optimizer_is_no_base():
    from lightning.pytorch.core.optimizer import LightningOptimizer

    wrapped = LightningOptimizer(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(TypeError, match="LightningSGD is what a training library makes of an optimizer"):
        hft.FTP(wrapped)
