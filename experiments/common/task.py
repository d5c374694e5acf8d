"""What a study has to know of a task: its examples, its network, its loss and its scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.common.network import Network


@dataclass(frozen=True)
class Part:
    """Examples to train on, drawn by index.

    `draw(chosen, generator)` gives augmented inputs and targets, on the CPU; all that is random is the generator's.
    """

    count: int
    draw: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
    lengths: Tensor | None = None  # [count], of examples that are padded to the longest one in their batch


class Task(Protocol):
    """Classification and segmentation are two of these; everything that compares methods asks for no more."""

    name: str
    metric: str  # what the scores are, in percent: "accuracy"
    parts: Mapping[str, Part]  # "pretrain"; "finetune", and its two parts "train" and "validation"
    #: Title of a column to the scores whose mean it shows. "id" and "ood" are always there.
    columns: Mapping[str, tuple[str, ...]]
    titles: Mapping[str, str]  # how columns are shown, where that is not the key itself

    def fingerprint(self) -> str:
        """A digest of all examples, of training and of tests."""
        ...

    def pretrain_fingerprint(self) -> str:
        """A digest of the part `pretrain` alone, and of what else decides how it is drawn."""
        ...

    def new_model(self) -> Network:
        """With its pre-trained weights and a new head, on the task's device."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        ...

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        """Of a training batch, between 0 and 1, for the progress bar."""
        ...

    def validate(self, model: nn.Module) -> float:
        """The metric on the part `validation`, not augmented."""
        ...

    def test(self, model: nn.Module) -> dict[str, float]:
        """The metric on every test set, by name."""
        ...


def summed_up(task: Task, scores: Mapping[str, float]) -> dict[str, float]:
    """A value for each column of the task."""
    return {title: sum(scores[name] for name in names) / len(names) for title, names in task.columns.items()}


def tested(task: Task, model: nn.Module) -> dict[str, Any]:
    """Scores of a model, and a value for each column of the task."""
    scores = task.test(model)
    return {"scores": scores, **summed_up(task, scores)}
