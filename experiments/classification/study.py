"""What every training of one run shares: the pictures, the network, one way to train and one to test."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from experiments.classification.config import Config
from experiments.classification.data import Pictures
from experiments.classification.model import Classifier, accuracy
from experiments.common.augment import flip_and_shift
from experiments.common.loop import Training, fit
from experiments.common.progress import Progress

OBSERVATIONS = 200  # of the radii, at most, in one training


def steps_of(pictures: Pictures, epochs: int, batch_size: int) -> int:
    return epochs * math.ceil(len(pictures.items) / batch_size)


class Study:
    """`on_step` is called after every step of every training with the training's name and its steps so far."""

    def __init__(
        self,
        config: Config,
        parts: dict[str, Pictures],
        id_domain: int,
        progress: Progress,
        on_step: Callable[[str, int], None] | None = None,
    ) -> None:
        self.config = config
        self.parts = parts
        self.id_domain = id_domain
        self.progress = progress
        self.on_step = on_step
        self.device = torch.device(config.device)
        self.to_fine_tune = parts["finetune"].of_domain(id_domain)
        self._whole = None

    def show_whole(self, steps: int) -> None:
        """Add a bar for everything that is to be done, in steps."""
        self._whole = self.progress.open("whole run", steps)

    def new_model(self) -> Classifier:
        test = self.parts["test"]
        return Classifier(len(test.classes), test.images.shape[-1], self.config.dropout).to(self.device)

    def train(
        self,
        name: str,
        model: Classifier,
        optimizer: torch.optim.Optimizer,
        pictures: Pictures,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        file: Path,
        identity: dict,
        observe: Callable[[], list[float]] | None = None,
    ) -> Training:
        """Train with a cosine schedule, from the checkpoint in `file` if it is of this very training."""
        torch.manual_seed(seed)
        steps = steps_of(pictures, epochs, batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        training = Training(model, optimizer, schedule, torch.Generator().manual_seed(seed))
        training.resume(file, identity)
        self._advance(training.step)

        def count(step: int) -> None:
            self._advance(1)
            if self.on_step is not None:
                self.on_step(name, step)

        fit(
            training,
            pictures.images,
            pictures.labels,
            F.cross_entropy,
            epochs=epochs,
            batch_size=batch_size,
            augment=partial(flip_and_shift, shift=self.config.shift),
            progress=self.progress,
            description=name,
            on_epoch=lambda: training.save(file, identity),
            on_step=count,
            observe=observe,
            observe_every=math.ceil(steps / OBSERVATIONS),
        )
        return training

    def _advance(self, steps: int) -> None:
        if self._whole is not None:
            self._whole.advance(steps=steps)

    def test(self, model: Classifier) -> dict:
        """Accuracy in every domain; OOD is the mean over the domains that were not fine-tuned on."""
        test = self.parts["test"]
        per_domain = {}
        for number, name in enumerate(test.domain_names):
            shown = test.of_domain(number)
            per_domain[name] = accuracy(model, shown.images, shown.labels, self.device)
        others = [value for number, value in enumerate(per_domain.values()) if number != self.id_domain]
        return {
            "accuracy": per_domain,
            "id": per_domain[test.domain_names[self.id_domain]],
            "ood": sum(others) / len(others),
        }
