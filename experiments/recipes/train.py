"""One method's training in the loop of all studies, and its tests."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_ftp as hft
from experiments.common.loop import Training
from experiments.common.trainer import Trainer, steps_of
from experiments.recipes.examples import Benchmark, Examples
from experiments.recipes.model import HEAD, Network
from experiments.recipes.paper import Recipe
from experiments.recipes.pictures import batches

SGD = {"momentum": 0.9, "nesterov": True}


def ftp(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    options |= {"radius_lr": recipe.radius_lr, "kappa": recipe.kappa, "exclude": () if recipe.zero_shot else HEAD}
    if recipe.optimizer == "sgd":
        return hft.FTPSGD(model.named_parameters(), **SGD, **options)
    return hft.FTPAdamW(model.named_parameters(), **options)


def finetune(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": recipe.plain_lr, "weight_decay": recipe.plain_weight_decay}
    return (
        torch.optim.SGD(weights, **SGD, **options)
        if recipe.optimizer == "sgd"
        else torch.optim.AdamW(weights, **options)
    )


def linear(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    model.freeze()
    return finetune(model, recipe)


METHODS: Mapping[str, Callable[[Network, Recipe], torch.optim.Optimizer]] = {
    "ftp": ftp,
    "finetune": finetune,
    "linear": linear,
}


@dataclass(frozen=True)
class Files:
    """A `Part` that worker processes read."""

    examples: Examples
    recipe: Recipe
    workers: int

    @property
    def count(self) -> int:
        """Of pictures in an epoch."""
        return len(self.examples.files)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        seed = int(torch.randint(2**40, (), generator=generator))
        return batches(self.examples, self.recipe, self.workers, seed)


class Recognise:
    """What the loop asks of a task."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        return (outputs.argmax(dim=1) == targets).float().mean().item()


@torch.no_grad()
def score(model: Network, examples: Examples, recipe: Recipe, workers: int) -> float:
    """Accuracy in percent, of the largest logit among the classes that are asked for."""
    device, right = model.mean.device, 0
    model.eval()
    for images, targets in batches(examples, recipe, workers):
        among = torch.tensor(examples.classes or range(recipe.classes), device=device)
        found = among[model(images.to(device))[:, among].argmax(dim=1)]
        right += int((found == targets.to(device)).sum())
    return 100 * right / len(examples.files)


def run(
    model: Network, recipe: Recipe, benchmark: Benchmark, method: str, seed: int, workers: int, trainer: Trainer,
    file: Path, identity: dict,
) -> dict:  # fmt: skip
    """Train by a method; `seed` is of order and augmentation, a checkpoint in `file` is gone on with if it is of
    `identity`.

    Returns:
        Scores of all tests; the mean loss of each epoch (None: not finite, and training stopped); the scores on
        validation pictures after each epoch; the time.
    """
    optimizer = METHODS[method](model, recipe)
    if (clip := recipe.clip) is not None:

        def clipped(*_: object) -> None:
            clip_grad_norm_(model.parameters(), clip)

        optimizer.register_step_pre_hook(clipped)

    def choose(training: Training) -> None:
        """Keep the weights that are best on the validation pictures: the first of equals, as the authors' code."""
        if benchmark.validation is None or training.diverged:
            return
        found = score(model, benchmark.validation, recipe, workers)
        if found > max(training.kept.setdefault("validation", []), default=-1.0):
            training.kept["best"] = {name: value.clone() for name, value in model.state_dict().items()}
        training.kept["validation"].append(found)

    part = Files(benchmark.train, recipe, workers)
    steps = steps_of(part, 1, recipe.batch_size)
    training = trainer.train(
        method,
        model,
        optimizer,
        part,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        file=file,
        identity=identity,
        schedule=LambdaLR(optimizer, lambda step: recipe.factor(steps, step)),
        after_epoch=choose,
    )
    if "best" in training.kept:
        model.load_state_dict(training.kept["best"])
    return {
        "scores": {name: score(model, examples, recipe, workers) for name, examples in benchmark.tests.items()},
        "losses": training.losses,
        "validation": training.kept.get("validation", []),
        "seconds": round(training.seconds, 1),
        "diverged": training.diverged,
    }
