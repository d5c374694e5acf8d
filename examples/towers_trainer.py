"""A tower of optimizers in Hugging Face's Trainer corrects a learning rate that is 100 times too small.

python -m examples.towers_trainer [FIGURE]
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import hyperopt_ftp as hft

from .digits import digits
from .towers import FROM_BELOW, GOOD, tower

STEPS = 200
RUNS = {
    "SGD": lambda lr: hft.sgd(lr=lr),
    "tower of 3": lambda lr: tower(lr, FROM_BELOW),
}


class Net(nn.Module):
    """The network of the other examples, with the loss inside, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(optimizer: hft.Optimizer, steps: int = STEPS) -> tuple[list[float], float]:
    """Training losses, mean over every 10 steps, and the learning rate in the end."""
    torch.manual_seed(0)
    model, (x, y) = Net(), digits()[0]
    opt = hft.PureOptimizer(model.named_parameters(), optimizer)
    data: Any = [{"x": a.float(), "labels": b} for a, b in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=64, lr_scheduler_type="constant", max_grad_norm=0.0,
            use_cpu=True, logging_steps=10, save_strategy="no", report_to="none", disable_tqdm=True, log_level="error",
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=data, optimizers=(opt, None))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, opt.hparams()["lr"]


def main() -> None:
    found = {}
    for name, make in RUNS.items():
        for text, lr in (("good", GOOD), ("100 times too small", GOOD / 100)):
            losses, end = found[f"{name}, {text}"] = train(make(lr))
            print(f"{name:>12}, lr {text:>20}: loss {losses[0]:.2f} -> {losses[-1]:.3f}, lr in the end {end:.3g}")
    if len(sys.argv) > 1:
        figure(found).savefig(sys.argv[1], dpi=120)


def figure(found: dict[str, tuple[list[float], float]]) -> Any:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7, 3.6), layout="constrained")
    axes = fig.subplots()
    for (name, (losses, _)), style in zip(found.items(), ("C7--", "C7-", "C0--", "C0-"), strict=True):
        (line,) = axes.plot(range(10, 10 * len(losses) + 1, 10), losses, style)
        side = "bottom" if name.startswith("SGD") else "top"  # two of them end close together
        end = (10 * len(losses), losses[-1])
        axes.annotate(f" {name}", end, va=side, color=line.get_color(), annotation_clip=False)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.spines[["right", "top"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
