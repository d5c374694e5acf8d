"""One training: stages of epochs, a checkpoint after each epoch, going on from it, and a test after each stage."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from experiments.common import checkpoint
from experiments.common.progress import Progress
from experiments.recipes.evaluate import loss, score
from experiments.recipes.examples import Benchmark, Examples, Stage, named
from experiments.recipes.methods import METHODS
from experiments.recipes.model import Network
from experiments.recipes.pictures import batches, steps_of
from experiments.recipes.recipe import Recipe
from experiments.recipes.schedule import factor


class Training:
    """Random numbers depend on seed, stage and epoch alone, so a checkpoint needs no state of a generator."""

    def __init__(
        self, recipe: Recipe, model: Network, method: str, seed: int, workers: int, file: Path, identity: dict
    ) -> None:
        self.recipe, self.model, self.method = recipe, model, method
        self.seed, self.workers = seed, workers
        self.file, self.identity = file, identity
        self.kept = None if recipe.anchor_moves or recipe.tasks == 1 else self._weights()
        self.progress: dict[str, Any] = {"stage": 0, "epoch": 0, "seconds": 0.0}
        self.progress |= {"losses": [], "validation": [], "scores": []}

    def run(self, benchmark: Benchmark, bars: Progress) -> dict:
        """Scores after each stage; the mean loss of each epoch (None: not finite, and training stopped); the scores on
        validation pictures after each epoch of the last stage; the time."""
        state = self._saved()
        for number in range(self.progress["stage"], len(benchmark.stages)):
            stage = benchmark.stages[number]
            self._fit(stage, benchmark.metric, number, state, bars)
            state = None
            self.progress["scores"].append(self._test(stage, benchmark.metric, number, bars))
            self.progress["stage"], self.progress["epoch"] = number + 1, 0
        return {name: self.progress[name] for name in ("scores", "losses", "validation", "seconds")}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def _saved(self) -> dict | None:
        """A checkpoint of this very training; any other is left to be replaced."""
        if not self.file.exists():
            return None
        saved = checkpoint.load(self.file)
        if saved["identity"] != self.identity:
            return None
        self.progress = saved["progress"]
        self.model.load_state_dict(saved["model"])
        return saved

    def _fit(self, stage: Stage, metric: str, number: int, state: dict | None, bars: Progress) -> None:
        recipe, progress = self.recipe, self.progress
        optimizer = METHODS[self.method](self.model, recipe, self.kept)
        steps, best = steps_of(stage.examples, recipe), None
        schedule = LambdaLR(optimizer, partial(factor, recipe, steps))
        if state is None:
            progress["validation"] = []
        else:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            best = state["best"]
        title = self.method if recipe.tasks == 1 else f"{self.method}, task {number + 1}"
        with bars.task(title, recipe.epochs * steps, done=progress["epoch"] * steps) as task:
            while progress["epoch"] < recipe.epochs and None not in progress["losses"]:
                start = time.perf_counter()
                mean = self._epoch(stage, number, optimizer, schedule, task)
                if stage.validation is not None and mean is not None:
                    found = self._score(stage.validation, metric)[metric]
                    if found > max(progress["validation"], default=-1.0):  # the first of equals, as the authors'
                        best = {name: value.clone() for name, value in self.model.state_dict().items()}
                    progress["validation"].append(found)
                progress["epoch"] += 1
                progress["losses"].append(mean)
                progress["seconds"] += time.perf_counter() - start
                content = {"identity": self.identity, "progress": progress, "model": self.model.state_dict()}
                content |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "best": best}
                checkpoint.save(self.file, content)
        if best is not None:
            self.model.load_state_dict(best)

    def _epoch(
        self, stage: Stage, number: int, optimizer: torch.optim.Optimizer, schedule: LRScheduler, task: Any
    ) -> float | None:
        device = next(self.model.parameters()).device
        self.model.train()
        seed = (self.seed * 1009 + number) * 100_003 + self.progress["epoch"]
        torch.manual_seed(seed)  # for dropout
        total, seen = 0.0, 0
        for images, targets in batches(stage.examples, self.recipe, self.workers, seed):
            value = loss(self.model(images.to(device)), targets.to(device), stage.examples.classes)
            amount = value.item()
            if not math.isfinite(amount):
                return None  # the weights are lost; say so instead of training on
            total, seen = total + amount * len(images), seen + len(images)
            optimizer.zero_grad()
            value.backward()
            if self.recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            optimizer.step()
            schedule.step()
            task.advance(note=f"loss {amount:.3f}")
        return total / seen

    def _test(self, stage: Stage, metric: str, number: int, bars: Progress) -> dict[str, float]:
        scores = {}
        with bars.task(f"{self.method}, tests {number + 1}", len(stage.tests)) as task:
            for name, examples in stage.tests.items():
                found = self._score(examples, metric)
                scores[name] = found.pop(metric)
                scores |= {named(name, error): value for error, value in found.items()}
                task.advance(note=name)
        return scores

    def _score(self, examples: Examples, metric: str) -> dict[str, float]:
        return score(self.model, batches(examples, self.recipe, self.workers), examples, metric, self.recipe.classes)
