"""The tasks, split by split, each with the weights that fine-tuning starts from."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from experiments.classification.study import load_parts
from experiments.classification.task import ClassificationTask
from experiments.classification.task import Config as ClassificationConfig
from experiments.common.anchor import make_anchor
from experiments.common.methods import held
from experiments.common.options import AnchorOptions
from experiments.common.progress import Progress
from experiments.common.task import Network, Task
from experiments.common.trainer import Trainer
from experiments.hypergradients.config import Config

CPU = torch.device("cpu")
SHARES = (0.25, 0.4, 0.35)  # of the emoji: to train an anchor, to fine-tune, to test


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
        self._config, self._folder, self.progress = config, folder, progress
        self.of, self._task = cache(self._of), cache(self._make_task)

    def fingerprint(self) -> str:
        """By task, then by split, so that a run may get more tasks."""
        return " ".join(self._task(name, seed)[0].fingerprint() for name in self._config.tasks
                        for seed in self._config.seeds)  # fmt: skip

    def about(self) -> dict[str, Any]:
        first = {name: self._task(name, self._config.seeds[0])[0] for name in self._config.tasks}
        return {
            name: {"metric": task.metric, "tests": [*task.columns["id"], *task.columns["ood"]],
                   "examples": {part: task.parts[part].count for part in ("train", "validation")}}
            for name, task in first.items()
        }  # fmt: skip

    def _of(self, name: str, seed: int) -> Problem:
        task, options = self._task(name, seed)
        return Problem(task, make_anchor(Trainer(task, self.progress), options, self._folder)[0], options)

    def _make_task(self, name: str, seed: int) -> tuple[Task, AnchorOptions]:
        config = self._config
        shared: dict[str, Any] = {"methods": ("tpgm",), "seeds": (seed,), "split_seed": seed}  # tpgm: some is held out
        if name == "minilm":
            from experiments.language.config import Config as LanguageConfig  # needs the extra `language`
            from experiments.language.data import load
            from experiments.language.model import minilm, tokenizer
            from experiments.language.task import LanguageTask

            sizes = {"tweets": 2 * config.tweets, "test_tweets": config.tweets, "pretrain_tweets": 1, "length": 24}
            options = LanguageConfig(**shared, anchor=name, **sizes)
            return LanguageTask(load(options, tokenizer()), partial(minilm, dropout=0.0), CPU), options
        if name == "scenes":
            from experiments.segmentation.task import Config as SegmentationConfig
            from experiments.segmentation.task import SegmentationTask

            options = SegmentationConfig(**shared)
            return SegmentationTask(options, self._folder, self.progress), options
        options = ClassificationConfig(
            **shared, anchor="styles" if name == "styles" else "imagenet", limit=config.items, shares=SHARES,
            anchor_epochs=config.anchor_epochs,
        )  # fmt: skip
        return ClassificationTask(load_parts(options, self._folder, self.progress), device=CPU), options
