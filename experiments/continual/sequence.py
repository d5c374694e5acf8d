"""One method through all tasks, and the choice of its learning rate on the first of them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.classification.task import ClassificationTask
from experiments.common import checkpoint
from experiments.common.loop import Training
from experiments.common.network import Network
from experiments.common.rates import untried
from experiments.common.step_log import write_steps
from experiments.common.task import Part
from experiments.common.trainer import Trainer, steps_of
from experiments.continual.config import Config
from experiments.continual.methods import METHODS, Place, Weights, mixed
from experiments.continual.metrics import MEASURES
from experiments.continual.stages import style_of


def name_of(method: str, seed: int) -> str:
    return f"{method}-seed{seed}"


def measured(tasks: Sequence[dict]) -> dict[str, float]:
    matrix = [[task["scores"][other["style"]] for other in tasks] for task in tasks]
    return {name: measure(matrix) for name, measure in MEASURES.items()}


class Learner:
    """All trainings of a run; `folder` is the run's."""

    def __init__(self, trainer: Trainer, options: Config, stages: Sequence[ClassificationTask], folder: Path) -> None:
        self.trainer, self.options, self.stages, self.folder = trainer, options, stages, folder
        self.imagenet: Weights = stages[0].new_model().state_dict()
        self._kept = folder / "sequence.pt"

    def steps(self, part: Part) -> int:
        return steps_of(part, self.options.epochs, self.options.batch_size)

    def steps_to_choose(self, tried: dict[str, float]) -> int:
        left = untried(self.options.lrs, tried)
        return len(left) * self.steps(self.stages[0].parts["train"]) if left else 0

    def steps_left(self, method: str, seed: int) -> int:
        left = self.stages[len(self._begun(method, seed)[1]) :]
        return sum(self.steps(stage.parts["finetune"]) for stage in left)

    def learn(
        self, method: str, seed: int, lr: float, number: int, start: Weights, part: Part, name: str
    ) -> tuple[Network, Training]:
        """Task `number`, from the weights before it: the model has those after it."""
        options, how = self.options, METHODS[method]
        model = self.stages[number].new_model()
        model.load_state_dict(dict(start))
        place = Place(first=number == 0, imagenet=self.imagenet)
        training = self.trainer.train(
            name,
            model,
            how.optimizer(model, options, lr, place),
            part,
            epochs=options.epochs,
            batch_size=options.batch_size,
            # With one seed for all tasks, each would show the same emoji in the same order.
            seed=random.Random(f"{seed}-task-{number}").getrandbits(48),
            file=self.folder / "checkpoint.pt",
            identity={"training": name, "config": options.as_dict()},
        )
        if how.mixes:
            after = mixed(start, model.state_dict(), options.wise, fresh=model.head if place.first else None)
            model.load_state_dict(dict(after))
        return model, training

    def choose_lr(self, method: str, tried: dict[str, float]) -> float | None:
        """Try the next learning rate into `tried`, or None when there is none left."""
        lr = next(iter(untried(self.options.lrs, tried)), None)
        if lr is not None:
            first, seed = self.stages[0], self.options.seeds[0]
            name, part = f"{method}, lr {lr}", first.parts["train"]
            model, training = self.learn(method, seed, lr, 0, self.imagenet, part, name)
            tried[str(lr)] = -1.0 if training.diverged else first.validate(model)
        return lr

    def run(self, method: str, seed: int, lr: float, on_task: Callable[[], None]) -> dict:
        """The results of all tasks. `on_task` is called after each, when it is kept."""
        weights, tasks = self._begun(method, seed)
        for number, stage in list(enumerate(self.stages))[len(tasks) :]:
            name = f"{method}, seed {seed}, task {number + 1}"
            model, training = self.learn(method, seed, lr, number, weights, stage.parts["finetune"], name)
            write_steps(self.folder / "steps" / f"{name_of(method, seed)}-task{number + 1}.csv", training.log)
            weights = model.state_dict()
            result = {
                "style": style_of(stage),
                "scores": stage.test(model),
                "diverged": training.diverged,
                "steps": training.step,
                "seconds": round(training.seconds, 1),
                "losses": training.losses,
            }
            tasks.append(result)
            content = {"identity": self._identity(method, seed), "weights": dict(weights), "tasks": tasks}
            checkpoint.save(self._kept, content)
            on_task()
        return {"method": method, "seed": seed, "lr": lr, **measured(tasks), "tasks": tasks}

    def _begun(self, method: str, seed: int) -> tuple[Weights, list[dict]]:
        """The weights after the tasks that are done, and their results; at first ImageNet's and none."""
        if self._kept.exists():
            saved = checkpoint.load(self._kept)
            if saved["identity"] == self._identity(method, seed):
                return saved["weights"], saved["tasks"]
        return self.imagenet, []

    def _identity(self, method: str, seed: int) -> dict:
        return {"sequence": name_of(method, seed), "config": self.options.as_dict()}
