"""The tasks, split by split, each with the weights that fine-tuning starts from."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from experiments.common.anchor import make_anchor
from experiments.common.methods import held
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.task import Network, Task
from experiments.common.trainer import Trainer
from experiments.hypergradients.config import Config


@dataclass(frozen=True)
class Problem:
    """One split of a task. There is no dropout: what is trained twice must be the same function twice."""

    task: Task
    start: dict[str, Tensor]
    options: AnchorOptions

    def begin(self) -> tuple[Network, dict[str, Tensor], dict[str, Tensor]]:
        """A model, its parameters, and those of them that have an anchor: all but a new head."""
        model = self.task.new_model()
        model.load_state_dict(self.start)
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        return model, params, {name: p.clone() for name, p in held(model, self.options, params).items()}


class Problems:
    """All of them, made when they are asked for."""

    def __init__(self, config: Config, folder: Path, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.of, self._task = cache(self._of), cache(self._make_task)

    def fingerprint(self) -> str:
        """By task, then by split, so that a run may get more tasks."""
        tasks = [self._task(name, seed)[0] for name in self.config.tasks for seed in self.config.seeds]
        return " ".join(task.fingerprint() for task in tasks)

    def about(self) -> dict[str, Any]:
        first = {name: self._task(name, self.config.seeds[0])[0].parts for name in self.config.tasks}
        return {name: {part: parts[part].count for part in ("train", "validation")} for name, parts in first.items()}

    def _of(self, name: str, seed: int) -> Problem:
        task, options = self._task(name, seed)
        return Problem(task, make_anchor(Trainer(task, self.progress), options, self.folder)[0], options)

    def _make_task(self, name: str, seed: int) -> tuple[Task, AnchorOptions]:
        pictures = {"limit": self.config.items, "shares": (0.25, 0.4, 0.35), "anchor_epochs": 3}
        texts = {"tweets": 120, "test_tweets": 60, "pretrain_tweets": 1, "length": 24}
        study, options, chosen = {
            "scenes": ("segmentation.study", "segmentation.task", {}),
            "minilm": ("language.study", "language.config", {"anchor": name, **texts}),  # needs the extra `language`
        }.get(name, ("classification.study", "classification.task", {"anchor": name, **pictures}))
        shared = {"methods": ("tpgm",), "seeds": (seed,), "split_seed": seed}  # for tpgm some examples are held out
        made = import_module(f"experiments.{options}").Config(**shared, **chosen)
        return import_module(f"experiments.{study}").COMPARISON.make_task(made, self.folder, self.progress), made
