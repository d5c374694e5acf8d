"""Lightning: plain classes in configure_optimizers, and its own checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from .runs import has_moved, is_equal, loader, network, pure

lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

BUILD = {
    "FTPAdamW": lambda named: hft.FTPAdamW(named, lr=1e-2, exclude="net.2.*"),
    "FTP": lambda named: hft.FTP(torch.optim.RMSprop(named, lr=1e-2), exclude="net.2.*"),
    "SPD": lambda named: hft.SPD(torch.optim.AdamW(named, lr=1e-2), exclude="net.2.*"),
    "PureOptimizer": pure,
}


class Module(lightning.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.net, self.name = network(), name

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        opt = BUILD[self.name](self.named_parameters())
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(opt, 4), "interval": "step"},
        }


def trainer(epochs: int, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks], **quiet, **options)


@pytest.mark.parametrize("name", BUILD)
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    """With its gradient clipping and accumulation, which happen in the closure that it hands to the step."""
    more = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    whole, first, second = Module(name), Module(name), Module(name)
    trainer(2, enable_checkpointing=False, **more).fit(whole, loader())
    keep = ModelCheckpoint(tmp_path, filename="kept")
    trainer(1, keep, **more).fit(first, loader())
    going_on = trainer(2, ModelCheckpoint(tmp_path), **more)
    going_on.fit(second, loader(), ckpt_path=keep.best_model_path, weights_only=True)
    assert going_on.global_step == 6
    assert has_moved(whole, first)
    assert is_equal(whole, second)
    (opt,) = going_on.optimizers
    assert type(opt).__name__ == name
    if hasattr(opt, "radii"):
        assert set(opt.radii()) == {"net.0.weight", "net.0.bias"}


@pytest.mark.parametrize("name", BUILD)
def test_bf16_mixed_with_clipping_as_torchs_adamw(name):
    """It refuses to clip for an optimizer that says it unscales gradients itself: by default none of ours does."""
    module = Module(name)
    trainer(1, enable_checkpointing=False, precision="bf16-mixed", gradient_clip_val=0.5).fit(module, loader())
    assert has_moved(module, Module(name))


class Held(Module):
    """What docs/integrations.md says of checkpoints without anchors."""

    def __init__(self) -> None:
        super().__init__("")
        self.anchor = {f"net.{name}": p.detach().clone() for name, p in self.net.named_parameters()}
        self.seen = []

    def configure_optimizers(self):
        named = self.named_parameters()
        return hft.FTPAdamW(named, lr=1e-2, exclude="net.2.*", anchor=self.anchor, save_anchor=False)

    def on_train_start(self) -> None:
        hft.watch(self.optimizers(), lambda step, layers: self.seen.append(step), first=self.global_step)


def test_checkpoints_without_anchors_go_on_bit_for_bit(tmp_path):
    whole, first, second = Held(), Held(), Held()
    trainer(2, enable_checkpointing=False).fit(whole, loader())
    keep = ModelCheckpoint(tmp_path, filename="kept")
    trainer(1, keep).fit(first, loader())
    kept = torch.load(keep.best_model_path, weights_only=True)
    assert not any("anchor" in state for state in kept["optimizer_states"][0]["state"].values())
    trainer(2, ModelCheckpoint(tmp_path)).fit(second, loader(), ckpt_path=keep.best_model_path, weights_only=True)
    assert has_moved(whole, first)
    assert is_equal(whole, second)
    assert (first.seen, second.seen) == (list(range(1, 7)), list(range(7, 13)))


def test_training_equals_a_plain_loop():
    module, net = Module("FTPAdamW"), network()
    trained = trainer(1, enable_checkpointing=False)
    trained.fit(module, loader())
    opt = hft.FTPAdamW(net.named_parameters(), lr=1e-2, exclude="2.*")
    schedule = torch.optim.lr_scheduler.StepLR(opt, 4)
    for x, y in loader():
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
        schedule.step()
    assert has_moved(net, network())
    assert is_equal(module.net, net)
    assert list(trained.optimizers[0].radii().values()) == list(opt.radii().values())


def test_what_lightning_makes_of_an_optimizer_is_no_base():
    from lightning.pytorch.core.optimizer import LightningOptimizer

    wrapped = LightningOptimizer(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(TypeError, match="LightningSGD is what a training library makes of an optimizer"):
        hft.FTP(wrapped)
