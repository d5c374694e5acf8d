"""What a study has to know of a task: its examples, its network, its loss and its scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """BatchNorm keeps its pre-trained statistics throughout: batches from one style would move them towards that style,
    for every method alike, and the comparison is about the weights."""

    head: str  # glob pattern of the names of the task's own parameters
    layers: Sequence[str | Sequence[str]]  # all others, from the input to the head, for rules that go by depth

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if name.startswith(self.head.removesuffix("*")):
                yield name, parameter

    def freeze_backbone(self) -> None:
        """Leave the head alone trainable: a linear probe. Backward then stops at the features."""
        self.requires_grad_(False)
        for _, parameter in self.head_parameters():
            parameter.requires_grad_(True)


class Batched(Protocol):
    """What a loop asks of the examples."""

    @property
    def count(self) -> int:
        """Of examples in an epoch."""
        ...

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Of one epoch, shuffled: inputs and targets."""
        ...


@dataclass(frozen=True)
class Part:
    """Examples to train on, drawn by index.

    `draw(chosen, generator)` gives augmented inputs and targets, on the CPU; all that is random is the generator's.
    """

    count: int
    draw: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
    lengths: Tensor | None = None  # [count], of examples that are padded to the longest one in their batch

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are drawn."""
        for chosen in torch.randperm(self.count, generator=generator).split(batch_size):
            yield self.draw(chosen, generator)


class Learnable(Protocol):
    """What a loop asks of a task."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        ...

    def share_right(self, outputs: Tensor, targets: Tensor) -> float:
        """Of a training batch, between 0 and 1, for the progress bar."""
        ...


class Task(Learnable, Protocol):
    """Classification and language are two of these; everything that compares methods asks for no more."""

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

    def validate(self, model: nn.Module) -> float:
        """The metric on the part `validation`, not augmented."""
        ...

    def test(self, model: nn.Module) -> dict[str, float]:
        """The metric on every test set, by name."""
        ...


def percent_right(answers: Tensor, labels: Tensor, by_class: bool = False) -> float:
    """The percentage of the examples that were given their class; ``by_class``: the mean over the classes."""
    right = answers == labels
    parts = [right[labels == label] for label in labels.unique()] if by_class else [right]
    return sum(100 * int(part.sum()) / len(part) for part in parts) / len(parts)


def summed_up(columns: Mapping[str, tuple[str, ...]], scores: Mapping[str, float]) -> dict[str, float]:
    """A value for each column: the mean of its scores."""
    return {title: sum(scores[name] for name in names) / len(names) for title, names in columns.items()}


def tested(task: Task, model: nn.Module) -> dict[str, Any]:
    """Scores of a model, and a value for each column of the task."""
    scores = task.test(model)
    return {"scores": scores, **summed_up(task.columns, scores)}
