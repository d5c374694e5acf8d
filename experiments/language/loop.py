"""The training loop is Hugging Face's Trainer, with the optimizer and the schedule handed to it."""

import math
import time
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from experiments.common.examples import generator
from experiments.common.loop import Training
from experiments.common.progress import Progress
from experiments.common.task import Part, Task

SORTED = 8  # batches, in which examples of a similar length are put together


def shuffled(part: Part, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """An epoch's batches, as indices. Where examples have lengths, those of eight batches at a time are sorted by
    them, so that little is padding; the batches then come in any order."""
    order = torch.randperm(part.count, generator=generator)
    if part.lengths is None:
        return list(order.split(batch_size))
    chunks = order.split(SORTED * batch_size)
    batches = [batch for some in chunks for batch in some[part.lengths[some].argsort(stable=True)].split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class Batches(IterableDataset):
    """Shuffled batches of the epochs that are left. An epoch's order depends on the seed and its number alone: the
    Trainer fetches a batch ahead, so the state of a generator would not say where a stopped training was."""

    def __init__(self, part: Part, batch_size: int, seed: int, first: int, epochs: int) -> None:
        self.part, self.batch_size, self.seed, self.first, self.epochs = part, batch_size, seed, first, epochs

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for epoch in range(self.first, self.epochs):
            drawn = generator("epoch", self.seed, epoch)
            for chosen in shuffled(self.part, self.batch_size, drawn):
                inputs, labels = self.part.draw(chosen, drawn)
                yield {"inputs": inputs, "labels": labels}


class WithLoss(nn.Module):
    """What the Trainer asks of a model: a forward that gives the loss. Its last one is kept to be written down."""

    def __init__(self, model: nn.Module, forward_of: Callable[[Tensor], Tensor], task: Task) -> None:
        super().__init__()
        self.model, self.forward_of, self.task = model, forward_of, task
        self.value = self.right = math.nan

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.forward_of(inputs)
        loss = self.task.loss(outputs, labels)
        self.value, self.right = loss.item(), self.task.share_right(outputs.detach(), labels)
        return {"loss": loss}


class Steps(TrainerCallback):
    """Writes every step down, saves at the end of an epoch, and stops a training whose loss is no longer finite."""

    def __init__(
        self,
        training: Training,
        model: WithLoss,
        per_epoch: int,
        on_step: Callable[[tuple[float, ...]], None],
        on_epoch: Callable[[], None],
    ) -> None:
        self.training, self.model, self.per_epoch = training, model, per_epoch
        self.on_each_step, self.on_each_epoch = on_step, on_epoch
        self.values: list[float] = []
        self.begun = False
        #: States of dropout, before the Trainer seeded and its loader drew.
        self.random = (torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
        self.begin = self.start = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.begun:
            cpu, cuda = self.random
            torch.set_rng_state(cpu)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            self.begun = True
        self.begin = time.perf_counter()
        if not self.values:
            self.start = self.begin
        self.lr = float(self.training.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        training, value = self.training, self.model.value
        self.values.append(value)
        finite = math.isfinite(value)
        if finite:
            training.step += 1
            row = (training.step, value, self.model.right, self.lr, time.perf_counter() - self.begin)
            training.log.append(row)
            self.on_each_step(row)
        if not finite or len(self.values) == self.per_epoch:
            training.epoch += 1
            training.losses.append(sum(self.values) / len(self.values) if finite else None)
            training.seconds += time.perf_counter() - self.start
            self.values = []
            self.on_each_epoch()
        control.should_training_stop = control.should_training_stop or not finite


def fit(
    training: Training,
    task: Task,
    part: Part,
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
    """As :func:`experiments.common.loop.fit`. Gradients are clipped to a norm of 1, the Trainer's default."""
    per_epoch = math.ceil(part.count / batch_size)
    if training.epoch >= epochs or training.diverged:
        return
    model = WithLoss(training.model, forward, task)
    device = next(training.model.parameters()).device
    data = Batches(part, batch_size, training.generator.initial_seed(), training.epoch, epochs)
    with progress.task(description, epochs * per_epoch, done=training.step) as bar, TemporaryDirectory() as folder:

        def written(row: tuple[float, ...]) -> None:
            if observe is not None and training.step % observe_every == 0:
                training.observed.append(observe())
                training.observed_at.append(training.step)
            bar.advance(note=f"loss {row[1]:.3f}, {100 * row[2]:3.0f} % right")
            on_step(training.step)

        arguments = TrainingArguments(
            folder,
            max_steps=(epochs - training.epoch) * per_epoch,
            per_device_train_batch_size=1,  # an item of the data is a batch
            remove_unused_columns=False,
            save_strategy="no",  # checkpoints are the study's own, so that a run goes on like every other
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
        )
        schedule: Any = training.scheduler  # the annotation there is narrower than what is allowed
        steps = Steps(training, model, per_epoch, written, on_epoch)
        trainer = Trainer(
            model,
            arguments,
            data_collator=lambda items: items[0],
            train_dataset=data,
            optimizers=(training.optimizer, schedule),
            callbacks=[steps],
        )
        trainer.train()
