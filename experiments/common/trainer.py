"""One way to train for everything that is compared: cosine schedule, checkpoint after each epoch, logs, bars."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from experiments.common.loop import Fit, Training, fit
from experiments.common.progress import Progress
from experiments.common.task import Batched, Learnable

OBSERVATIONS = 200  # of the radii, at most, in one training

OnStep = Callable[[str, int], None]
T_co = TypeVar("T_co", bound=Learnable, covariant=True)


def steps_of(part: Batched, epochs: int, batch_size: int) -> int:
    return epochs * math.ceil(part.count / batch_size)


class Trainer(Generic[T_co]):
    """`on_step` is called after every step of every training with its name and its steps so far; `fit` is the loop."""

    def __init__(self, task: T_co, progress: Progress, on_step: OnStep | None = None, fit: Fit = fit) -> None:
        self.task = task
        self.progress = progress
        self.on_step = on_step or (lambda name, step: None)
        self.fit = fit

    def train(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        part: Batched,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        file: Path,
        identity: dict,
        warm_up: float = 0.0,
        forward: Callable[[Tensor], Tensor] | None = None,
        observe: Callable[[], Any] | None = None,
        schedule: LRScheduler | None = None,
        after_epoch: Callable[[Training], None] | None = None,
    ) -> Training:
        """Train from the checkpoint in `file` if it is of this very training.

        Args:
            warm_up: share of the steps before the cosine, which is the schedule where no other is given.
            forward: stands for `model` in a step.
            after_epoch: looks at the training after each epoch, before that is saved.
        """
        torch.manual_seed(seed)
        steps = steps_of(part, epochs, batch_size)
        schedule = schedule or schedule_of(optimizer, steps, round(warm_up * steps))
        training = Training(model, optimizer, schedule, torch.Generator().manual_seed(seed))
        training.resume(file, identity)

        def save() -> None:
            if after_epoch is not None:
                after_epoch(training)
            training.save(file, identity)

        two: list[Any] = [optimizer] if callable(getattr(optimizer, "train", None)) else []  # sets of weights
        for of in two:
            of.train()
        self.fit(
            training,
            self.task,
            part,
            forward=model if forward is None else forward,
            epochs=epochs,
            batch_size=batch_size,
            progress=self.progress,
            description=name,
            on_epoch=save,
            on_step=lambda step: self.on_step(name, step),
            observe=observe,
            observe_every=math.ceil(steps / OBSERVATIONS),
        )
        for of in two:
            of.eval()
        return training


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, rising: int) -> LRScheduler:
    """A cosine to 0, after a straight line from 0 in the first `rising` steps."""
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - rising)
    if not rising:
        return cosine
    line = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / rising, total_iters=rising)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [line, cosine], milestones=[rising])
