"""What the methods ask of a network."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


class Network(nn.Module):
    """BatchNorm keeps its pre-trained statistics throughout: batches from one style would move them towards that style,
    for every method alike, and the comparison is about the weights."""

    head: str  # glob pattern of the names of the task's own parameters
    layers: Sequence[str | Sequence[str]]  # all others, from the input to the head, for rules that go by depth
    adapted: Sequence[str] = ()  # names of the linear layers that LoRA goes around; there are none in convolutions

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
