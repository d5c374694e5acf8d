"""What is trained: a sentence encoder with a new linear head, random data, the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

Params = dict[str, Tensor]


class Encoder(nn.Module):
    """Embeddings, layers, and a head on the mean over tokens.

    Args:
        embed: tokens to vectors.
        layers: each called as ``layer(x, mask)``; the mask, of shape (batch, 1, 1, length), is True where a token is.
        width: of the vectors.
        bias: called as ``bias(x, mask)``, gives what the layers get in place of the mask.
    """

    def __init__(
        self, embed: nn.Module, layers: Iterable[nn.Module], width: int, bias: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embed, self.layers, self.head = embed, nn.ModuleList(layers), nn.Linear(width, 2)
        self.bias = bias

    def parts(self) -> list[str]:
        """Embeddings, each layer, head, and the bias if there is one."""
        bias = [] if self.bias is None else ["bias"]
        return ["embed", *(f"layers.{k}" for k in range(len(self.layers))), "head", *bias]


def part_of(name: str) -> str:
    """The part that a parameter of an :class:`Encoder` belongs to."""
    return ".".join(name.split(".")[: 2 if name.startswith("layers.") else 1])


class Batch(NamedTuple):
    """Some examples, each of ``length`` tokens."""

    tokens: Tensor
    mask: Tensor  # which of them are no padding
    labels: Tensor
    ids: Tensor  # of the examples: where their weights are


class Data(NamedTuple):
    """A batch for each step, one that is held out, and of how many examples all are made."""

    batches: list[Batch]
    held_out: Batch
    examples: int


def drawn(words: int, steps: int, size: int, length: int) -> Data:
    """Random tokens, some with padding, and random labels. Sixteen batches, again and again where steps are more."""
    draw = torch.Generator().manual_seed(0)

    def batch(first: int) -> Batch:
        sizes = torch.randint(length // 2, length + 1, (size, 1), generator=draw)
        tokens = torch.randint(words, (size, length), generator=draw)
        labels = torch.randint(2, (size,), generator=draw)
        return Batch(tokens, torch.arange(length) < sizes, labels, torch.arange(first, first + size))

    count = size * min(steps, 16)
    batches = [batch(first) for first in range(0, count, size)]
    return Data([batches[k % len(batches)] for k in range(steps)], batch(0), count)


def losses_of(
    net: Encoder, again: bool = False, narrow: bool = False
) -> tuple[Callable[[Params, Batch, dict[str, Tensor]], Tensor], Callable[[Params, Batch], Tensor]]:
    """The training loss, whose third argument has a weight for each example, and the loss on held-out data.

    Args:
        net: gives the structure; its own parameters are not used.
        again: activations inside a layer are computed again where a gradient needs them.
        narrow: autocast to bfloat16.
    """
    layers = [name for name in net.parts() if name.startswith("layers.")]

    def each(params: Params, batch: Batch) -> Tensor:
        own: dict[str, Params] = {part: {} for part in net.parts()}
        for name, p in params.items():
            part = part_of(name)
            own[part][name[len(part) + 1 :]] = p

        def call(part: str, *inputs: Tensor) -> Any:
            return functional_call(net.get_submodule(part), own[part], inputs)

        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            x, mask = call("embed", batch.tokens), batch.mask[:, None, None]
            mask = mask if net.bias is None else call("bias", x, mask)
            for layer in layers:
                # Inside of it functional_call: a checkpoint inside of functional_call would compute with other weights.
                x = checkpoint(call, layer, x, mask, use_reentrant=False) if again else call(layer, x, mask)
            weight = batch.mask[..., None].to(x.dtype)
            logits = call("head", (x * weight).sum(1) / weight.sum(1))
        return cross_entropy(logits.to(params["head.bias"].dtype), batch.labels, reduction="none")

    def train_loss(params: Params, batch: Batch, hparams: dict[str, Tensor]) -> Tensor:
        return (torch.sigmoid(hparams["weight"][batch.ids]) * each(params, batch)).mean()

    return train_loss, lambda params, batch: each(params, batch).mean()
