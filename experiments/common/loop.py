"""The training loop: epochs of shuffled batches, a checkpoint after each, and going on from it."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from experiments.common import checkpoint
from experiments.common.progress import Progress
from experiments.common.task import Batched, Learnable

#: What is written down after each step.
STEP = ("step", "loss", "right", "lr", "seconds")


@dataclass
class Training:
    """Everything that changes while training, hence everything a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler  # stepped once per batch
    generator: torch.Generator  # order and augmentation; the global generators serve dropout
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    losses: list[float | None] = field(default_factory=list)  # mean of each epoch; None: not finite
    log: list[tuple[float, ...]] = field(default_factory=list)  # one STEP for each
    observed: list[Any] = field(default_factory=list)  # what `observe` returned, at the steps in observed_at
    observed_at: list[int] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)  # what is looked at after an epoch leaves here

    @property
    def diverged(self) -> bool:
        return None in self.losses

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": {
                "batches": self.generator.get_state(),
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds,
                "losses": self.losses,
                "log": self.log,
                "observed": self.observed,
                "observed_at": self.observed_at,
                "kept": self.kept,
            },
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["rng"]["batches"])
        torch.set_rng_state(state["rng"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def save(self, file: Path, identity: dict) -> None:
        checkpoint.save(file, {"identity": identity, "training": self.state_dict()})

    def resume(self, file: Path, identity: dict) -> None:
        """Go on from a checkpoint if there is one of this very training; any other is left to be replaced."""
        if file.exists():
            saved = checkpoint.load(file)
            if saved["identity"] == identity:
                self.load_state_dict(saved["training"])


def write_steps(file: Path, log: Sequence[Sequence[float]]) -> None:
    """What was measured at each step, as CSV.

    Columns: step, loss, share of the batch that was right (nan: not known), lr, seconds.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(STEP)
    rows.writerows([int(step), *(f"{value:.6g}" for value in values)] for step, *values in log)
    checkpoint.write_text(file, text.getvalue())


#: A loop, as `fit` is one.
Fit: TypeAlias = Callable[..., None]


def fit(
    training: Training,
    task: Learnable,
    part: Batched,
    *,
    forward: Callable[[Tensor], Tensor],
    epochs: int,
    batch_size: int,
    progress: Progress,
    description: str,
    on_epoch: Callable[[], None],
    on_step: Callable[[int], None],
    observe: Callable[[], Any] | None = None,
    observe_every: int = 1,
) -> None:
    """Train to the end, or until the loss is no longer finite.

    Args:
        forward: gives the outputs of a step; the model itself, or its pass with other weights.
        on_epoch: called after every epoch, to save a checkpoint.
        on_step: called after every step with the number of steps so far.
        observe: called after every `observe_every`-th step; its results are kept in `training.observed`.
    """
    device = next(training.model.parameters()).device
    per_epoch = math.ceil(part.count / batch_size)
    with progress.task(description, epochs * per_epoch, done=training.step) as bar:
        while training.epoch < epochs and not training.diverged:
            start = time.perf_counter()
            training.model.train()
            total = 0.0
            begin = start
            for batch in part.batches(batch_size, training.generator):
                inputs, targets = (x.to(device) for x in batch)
                outputs = forward(inputs)
                loss = task.loss(outputs, targets)
                value = loss.item()
                total += value * len(targets)
                if not math.isfinite(value):
                    break  # the weights are lost; say so instead of training on
                training.optimizer.zero_grad()
                loss.backward()
                lr = float(
                    training.optimizer.param_groups[0]["lr"]
                )  # now: it may be a tensor, which the schedule fills
                training.optimizer.step()
                training.scheduler.step()
                training.step += 1
                right = task.share_right(outputs.detach(), targets)
                row = (training.step, value, right, lr, time.perf_counter() - begin)
                training.log.append(row)
                if observe is not None and training.step % observe_every == 0:
                    training.observed.append(observe())
                    training.observed_at.append(training.step)
                bar.advance(note=f"loss {value:.3f}, {100 * right:3.0f} % right")
                on_step(training.step)
                begin = time.perf_counter()
            training.epoch += 1
            training.losses.append(total / part.count if math.isfinite(total) else None)
            training.seconds += time.perf_counter() - start
            on_epoch()
