"""One method's training: stages of epochs in the loop of all studies, and a test after each stage."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_ftp as hft
from experiments.common import checkpoint
from experiments.common.loop import Training
from experiments.common.progress import Progress
from experiments.common.trainer import Trainer
from experiments.recipes.examples import Benchmark, Examples, Stage, named
from experiments.recipes.model import HEAD, Network
from experiments.recipes.paper import Recipe
from experiments.recipes.pictures import batches, steps_of
from experiments.recipes.scores import WITHIN, angles, largest, loss, score

Anchor = Mapping[str, Tensor] | None  # None: where training starts


def ftp(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "anchor": anchor}
    options |= {"radius_lr": recipe.radius_lr, "kappa": recipe.kappa, "exclude": () if recipe.zero_shot else HEAD}
    if recipe.optimizer == "sgd":
        return hft.FTPSGD(model.named_parameters(), momentum=recipe.momentum, nesterov=True, **options)
    return hft.FTPAdamW(model.named_parameters(), **options)


def finetune(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": recipe.plain_lr, "weight_decay": recipe.plain_weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, momentum=recipe.momentum, nesterov=True, **options)
    return torch.optim.AdamW(weights, **options)


def linear(model: Network, recipe: Recipe, anchor: Anchor) -> torch.optim.Optimizer:
    model.freeze()
    return finetune(model, recipe, anchor)


METHODS: Mapping[str, Callable[[Network, Recipe, Anchor], torch.optim.Optimizer]] = {
    "ftp": ftp,
    "finetune": finetune,
    "linear": linear,
}


@dataclass(frozen=True)
class StagePart:
    """A `Part` that worker processes read."""

    stage: Stage
    recipe: Recipe
    workers: int

    @property
    def count(self) -> int:
        """Of pictures in an epoch."""
        whole = steps_of(self.stage.examples, self.recipe) * self.recipe.batch_size
        return min(whole, len(self.stage.examples.files))

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        seed = int(torch.randint(2**40, (), generator=generator))
        return batches(self.stage.examples, self.recipe, self.workers, seed)


@dataclass(frozen=True)
class StageTask:
    """What the loop asks of a task."""

    classes: tuple[int, ...] | None  # the only ones that are learned; None: all

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets, self.classes)

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        """Of pictures or pixels, for the progress bar."""
        hits = angles(outputs.cpu(), targets.cpu()) < WITHIN if targets.ndim == 4 else largest(outputs, None) == targets
        return hits.float().mean().item()


@dataclass(frozen=True)
class Learner:
    """The training by one method; random numbers depend on the seed and the stage."""

    recipe: Recipe
    method: str
    seed: int
    workers: int
    folder: Path
    identity: dict  # what a checkpoint has to be of

    def run(self, model: Network, benchmark: Benchmark, trainer: Callable[[StageTask], Trainer[StageTask]]) -> dict:
        """Scores after each stage; the mean loss of each epoch (None: not finite, and training stopped); the scores on
        validation pictures after each epoch of the last stage; the time."""
        anchor = None
        if self.recipe.tasks > 1 and not self.recipe.anchor_moves:
            anchor = {name: value.detach().clone() for name, value in model.named_parameters()}
        file = self.folder / "stages.pt"
        done: dict[str, Any] = {"scores": [], "losses": [], "validation": [], "seconds": 0.0}
        saved = checkpoint.load(file) if file.exists() else {}
        if saved.get("identity") == self.identity:
            done = saved["done"]
            model.load_state_dict(saved["model"])
        for number in range(len(done["scores"]), len(benchmark.stages)):
            stage = benchmark.stages[number]
            lead = trainer(StageTask(stage.examples.classes))
            training = self._fit(model, stage, benchmark.metric, number, anchor, lead)
            done["losses"] += training.losses
            done["validation"] = training.kept.get("validation", [])
            done["seconds"] += training.seconds
            done["scores"].append(self._test(model, stage, benchmark.metric, number, lead.progress))
            checkpoint.save(file, {"identity": self.identity, "done": done, "model": model.state_dict()})
        return done

    def _fit(
        self, model: Network, stage: Stage, metric: str, number: int, anchor: Anchor, trainer: Trainer[StageTask]
    ) -> Training:
        recipe, steps = self.recipe, steps_of(stage.examples, self.recipe)
        optimizer = METHODS[self.method](model, recipe, anchor)
        if (clip := recipe.clip) is not None:

            def clipped(*_: object) -> None:
                clip_grad_norm_(model.parameters(), clip)

            optimizer.register_step_pre_hook(clipped)

        def choose(training: Training) -> None:
            """Keep the weights that are best on the validation pictures: the first of equals, as the authors' code."""
            if stage.validation is None or training.diverged:
                return
            found = self._score(model, stage.validation, metric)[metric]
            if found > max(training.kept.setdefault("validation", []), default=-1.0):
                training.kept["best"] = {name: value.clone() for name, value in model.state_dict().items()}
            training.kept["validation"].append(found)

        training = trainer.train(
            self.method if recipe.tasks == 1 else f"{self.method}, task {number + 1}",
            model,
            optimizer,
            StagePart(stage, recipe, self.workers),
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            seed=self.seed * 1009 + number,
            file=self.folder / "checkpoint.pt",
            identity=self.identity | {"stage": number},
            schedule=LambdaLR(optimizer, lambda step: recipe.factor(steps, step)),
            after_epoch=choose,
        )
        if "best" in training.kept:
            model.load_state_dict(training.kept["best"])
        return training

    def _test(self, model: Network, stage: Stage, metric: str, number: int, bars: Progress) -> dict[str, float]:
        scores = {}
        with bars.task(f"{self.method}, tests {number + 1}", len(stage.tests)) as task:
            for name, examples in stage.tests.items():
                found = self._score(model, examples, metric)
                scores[name] = found.pop(metric)
                scores |= {named(name, error): value for error, value in found.items()}
                task.advance(note=name)
        return scores

    def _score(self, model: Network, examples: Examples, metric: str) -> dict[str, float]:
        return score(model, batches(examples, self.recipe, self.workers), examples, metric, self.recipe.classes)
